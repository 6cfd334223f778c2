"""The README of an exported model: what it is, what encodes its videos and sentences, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord

README = "README.md"
_PAGE = """\
# A model that finds moments in videos

A text query describes a moment of a video; the model ranks videos by how well one of their moments fits, and shows
where it is. It was trained with dreamprvr_ray {version} ({settings}; epoch {epoch}, SumR {sumr:.1f} on val).

## Encoders

{encoders}

## Use it

```sh
pip install dreamprvr_ray
python -m dreamprvr_ray.index --model . --videos VIDEOS --out INDEX
python -m dreamprvr_ray.find INDEX "a person opens a door"
```

`index` encodes a directory of videos once; run it again when videos have been added or removed. `--shards` or
`--source` index features that exist. `python retrieve.py INDEX "a person opens a door"` is a short script that does the
same as `find`. In Python:

```python
from dreamprvr_ray import Index

for found in Index.open("INDEX").find("a person opens a door").results:
    print(found.video, found.start, found.end, found.score)
```

`python -m dreamprvr_ray.evaluate --checkpoint . --shards SHARDS --split val` measures it.

## Files

`weights.safetensors`: the weights; `experiment.yaml`: the configuration; `metrics.json`: val metrics and the encoders;
`moments.safetensors`, if there is one: what finds the moments; `checksums.json`: SHA-256 of these. They hold tensors
and plain values only: loading them never executes code.
"""


def export_page(
    experiment: Experiment, metrics: Mapping[str, Any], encoding: EncodingRecord | None, version: str
) -> str:
    """Return the README of a model with these settings, metrics and encoders."""
    model, data = experiment.model, experiment.data
    settings = f"{model.registers} registers, hidden size {model.hidden_size}"
    if encoding is None:
        encoders = (
            f"The features that it was trained on came without a record of their encoders: frames of {data.video_size}"
            f" values, tokens of {data.text_size}.\nIndex features of the same encoders with `--shards` or `--source`,"
            " and name the encoder of sentences with\n`--sentence-encoder`."
        )
    else:
        sentences = encoding.sentences
        lines = [f"- Frames: {encoding.fps:g} per second, by {_describe(encoding.frames)}"]
        lines += [] if sentences is None else [f"- Sentences: by {_describe(sentences)}"]
        if encoding.window is not None:
            lines.append(f"- Videos longer than {encoding.window:g} s are cut into windows of this length")
        encoders = "\n".join([*lines, "", "`encoding.json` holds their versions and a hash of their weights."])
    return _PAGE.format(
        version=version, settings=settings, epoch=metrics["epoch"], sumr=metrics["SumR"], encoders=encoders
    )


def _describe(encoder: EncoderRecord) -> str:
    return f"`{encoder.name}` ({encoder.size} values)"
