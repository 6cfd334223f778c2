"""`python -m dreamprvr_ray.find`: the moments of an index that a sentence describes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dreamprvr_ray import command_line
from dreamprvr_ray.storage.location import local_folder

if TYPE_CHECKING:
    from dreamprvr_ray.index.answers import Answer, Found


def main(arguments: list[str]) -> None:
    parser = command_line.Parser("find", "Find the moments of an index that a sentence describes.")
    parser.add_argument("index", type=local_folder, metavar="INDEX", help="directory that `index` wrote")
    parser.add_argument("sentence", metavar="SENTENCE", help="what happens in the moment, in quotes")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="number of videos to show (default: 10)")
    parser.add_argument(
        "--sentence-encoder",
        metavar="ENCODER",
        help="encoder of sentences, if the index does not know it or it has moved",
    )
    options = parser.parse_args(arguments)
    from dreamprvr_ray.index.index import Index

    answer = Index.open(Path(options.index), sentence_encoder=options.sentence_encoder).find(
        options.sentence, options.top
    )
    print("\n".join(table(answer)), flush=True)
    if options.json:
        command_line.print_json(answer.to_dict())


def table(answer: Answer) -> list[str]:
    """Return the lines of an answer: rank, video, start and end, score."""
    if not answer.results:
        return ["the index is empty"]
    names = [found.file or found.video for found in answer.results]
    width = max(map(len, [*names, "video"]))
    lines = [f"rank  {'video':<{width}}  {'moment':<19}  score"]
    for name, found in zip(names, answer.results, strict=True):
        lines.append(f"{found.rank:>4}  {name:<{width}}  {moment(found):<19}  {found.score:.3f}")
    if answer.probability is not None:
        lines.append(f"probability that the collection holds such a moment: {answer.probability:.0%}")
    return lines


def moment(found: Found) -> str:
    """Return a moment as text: its start and end in minutes and seconds, or as shares of an unknown length."""
    if found.start is None or found.end is None:
        return f"{found.shares[0]:.0%} - {found.shares[1]:.0%}"
    return f"{clock(found.start)} - {clock(found.end)}"


def clock(seconds: float) -> str:
    """Return a time as m:ss.s, or h:mm:ss.s from an hour."""
    tenths = round(seconds * 10)
    hours, rest = divmod(tenths, 36000)
    minutes, rest = divmod(rest, 600)
    text = f"{rest / 10:04.1f}"
    return f"{hours}:{minutes:02}:{text}" if hours else f"{minutes}:{text}"


if __name__ == "__main__":
    command_line.run(main)
