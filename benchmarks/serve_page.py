"""python -m benchmarks.serve_page: sentences that are typed into the page of `serve`, in a browser.

Sentences of a table of captions are drawn by a seed. For each, the first result is compared with the sentence's own
video; where they are the same, the player's time with the described moment; and the clip is downloaded and opened.
"""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.browser import Browser, browser
from benchmarks.serve import server
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.storage.location import local_folder
from dreamprvr_ray.video.captions import CaptionRow, read_caption_table

TOLERANCE = 1.0  # seconds, and a frame, that the player may be away from the moment


@dataclass(frozen=True)
class Typed:
    """What the page showed for a sentence.

    Attributes:
        sentence: The sentence.
        is_hit: Whether the first result is its video.
        off: Seconds from the player's time to the start of the found moment.
        away: Seconds from the player's time to the described moment; 0 within it, None if the video is another one.
        is_shown: Whether the found moment and the described one overlap; None if the video is another one.
        clip_frames: Frames of the downloaded clip.
        seconds: From the Enter key to the answer.
    """

    sentence: str
    is_hit: bool
    off: float
    away: float | None
    is_shown: bool | None
    clip_frames: int
    seconds: float


def main(arguments: list[str]) -> None:
    parser = Parser("serve_page", "Type sentences into the page of `serve`, in a browser.", package="benchmarks")
    parser.add_argument("index", type=local_folder, metavar="INDEX", help="directory that `index` wrote")
    parser.add_argument("--captions", type=Path, required=True, metavar="FILE", help="captions with times and splits")
    parser.add_argument("--split", default="test", help="split of the captions (default: test)")
    parser.add_argument("--sentences", type=int, default=10, help="sentences to type (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing them (default: 0)")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="also write pictures of the page there")
    options = parser.parse_args(arguments)
    rows = [row for row in read_caption_table(options.captions) if row.split in (options.split, None)]
    if len(rows) < options.sentences:
        raise UserError(f"{options.captions}: only {len(rows)} sentences of {options.split}")
    index = Index.open(options.index)
    answers = index.find_many([row.sentence for row in rows], top=1)
    hits = [is_right(row, vars(answer.results[0])) for row, answer in zip(rows, answers, strict=True)]
    recall = 100 * sum(hits) / len(hits)
    drawn = random.Random(options.seed).sample(rows, options.sentences)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-page-") as folder, server(options.index, 1, None) as (_, port):
        with browser(Path(folder)) as window:
            window.open(f"http://127.0.0.1:{port}/")
            typed = [type_sentence(window, row, Path(folder)) for row in drawn]
            errors = window.errors()
        if options.pictures is not None:
            take_pictures(f"http://127.0.0.1:{port}/", drawn[0].sentence, options.pictures)
    for each in typed:
        away = "another video" if each.away is None else f"{each.away:.2f} s from the moment"
        print(f"{each.sentence}: {away}, clip of {each.clip_frames} frames, {1000 * each.seconds:.0f} ms")
    right = [each for each in typed if each.is_hit]
    print(
        f"{sum(each.is_hit for each in typed)} of {len(typed)} first results are right; R@1 of all {len(rows)}"
        f" sentences {recall:.1f}%; the player is at most {max(each.off for each in typed):.2f} s from the start of the"
        f" found moment; of {len(right)} right videos it is within {TOLERANCE:g} s of the described moment in"
        f" {sum(each.away is not None and each.away <= TOLERANCE for each in right)}, and plays a part of it in"
        f" {sum(bool(each.is_shown) for each in right)}; {len(errors)} errors in the console"
    )
    if options.json:
        print_json({"typed": [asdict(each) for each in typed], "R@1": recall, "console": errors})


def type_sentence(window: Browser, row: CaptionRow, downloads: Path) -> Typed:
    """Type a sentence, look at the first result, and download its clip."""
    import av

    begin = time.perf_counter()
    window.search(row.sentence)
    seconds = time.perf_counter() - begin
    window.wait("video.readyState >= 2 && !video.seeking", 60)
    found, now = window.script("return [shown[0], video.currentTime + offset(shown[0])]")
    is_hit = is_right(row, found)
    away = is_shown = None
    if is_hit and row.start is not None and row.end is not None:
        away = max(0.0, row.start - now, now - row.end)
        is_shown = min(row.end, found["end"]) > max(row.start, found["start"])
    before = set(downloads.glob("*.mp4"))
    window.press("d")
    deadline = time.monotonic() + 60
    while not (new := set(downloads.glob("*.mp4")) - before):
        if time.monotonic() > deadline:
            raise TimeoutError("the clip was not downloaded")
        time.sleep(0.05)
    with av.open(str(new.pop())) as container:
        frames = sum(1 for _ in container.decode(video=0))
    return Typed(row.sentence, is_hit, abs(now - found["start"]), away, is_shown, frames, seconds)


def is_right(row: CaptionRow, found: dict[str, Any]) -> bool:
    """Return whether a result is the video that a caption names: by its file, with or without the ending."""
    file = Path(found["file"] or found["video"])
    return row.video in (str(file), str(file.with_suffix("")), file.name, file.stem)


def take_pictures(address: str, sentence: str, directory: Path) -> None:
    """Write pictures of the page: at two widths, light and dark, at the start and with an answer."""
    directory.mkdir(parents=True, exist_ok=True)
    for width, height in ((1440, 1000), (390, 844)):
        for dark in (False, True):
            name = f"{width}-{'dark' if dark else 'light'}"
            with browser(directory, width, height, dark) as window:
                window.open(address)
                window.wait("at('about').textContent.includes('video')")
                window.screenshot(directory / f"start-{name}.png")
                window.search(sentence)
                window.wait("video.readyState >= 2 && !video.seeking", 60)
                window.wait("[...document.images].every(each => each.complete || each.loading === 'lazy')", 30)
                window.screenshot(directory / f"answer-{name}.png")


if __name__ == "__main__":
    run(main)
