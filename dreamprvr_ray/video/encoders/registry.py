"""Encoders by name: `LIBRARY:MODEL`, or `module:Class` for a user's own class."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from dreamprvr_ray.errors import UserError, did_you_mean, first_line
from dreamprvr_ray.video.encoders.protocols import FrameEncoder, SentenceEncoder

if TYPE_CHECKING:
    import torch

# Library: module and class, what it encodes, an example. The class is called with (name, model, device).
LIBRARIES: dict[str, tuple[str, str, frozenset[str], str]] = {
    "open_clip": (
        "dreamprvr_ray.video.encoders.open_clip",
        "OpenCLIPEncoder",
        frozenset({"frames", "sentences"}),
        "open_clip:ViT-B-32/laion2b_s34b_b79k",
    ),
    "transformers": (
        "dreamprvr_ray.video.encoders.transformers",
        "TransformersEncoder",
        frozenset({"frames", "sentences"}),
        "transformers:google/siglip2-base-patch16-224",
    ),
    "timm": (
        "dreamprvr_ray.video.encoders.timm",
        "TimmEncoder",
        frozenset({"frames"}),
        "timm:tf_efficientnet_lite0.in1k",
    ),
    "sentence_transformers": (
        "dreamprvr_ray.video.encoders.sentence_transformers",
        "SentenceTransformersEncoder",
        frozenset({"sentences"}),
        "sentence_transformers:sentence-transformers/all-MiniLM-L6-v2",
    ),
}


def check_name(name: str, encodes: str | None = None) -> None:
    """Check an encoder's name without loading weights.

    Args:
        encodes: `frames` or `sentences`, if the encoder must encode these. Not checked for a user's own class, which
            would have to be imported.

    Raises `UserError` if the name is malformed, the library unknown, or the library does not encode these.
    """
    library, colon, model = name.partition(":")
    if not colon or not library or not model:
        examples = ", ".join(entry[3] for entry in LIBRARIES.values())
        raise UserError(f"encoder {name!r}: must be LIBRARY:MODEL, such as {examples}; or module:Class for your own")
    if library in LIBRARIES:
        if encodes is not None and encodes not in LIBRARIES[library][2]:
            able = [entry[3] for entry in LIBRARIES.values() if encodes in entry[2]]
            raise UserError(f"encoder {name}: {library} does not encode {encodes}; use one such as {', '.join(able)}")
    elif not all(part.isidentifier() for part in library.split(".")) or not model.isidentifier():
        raise UserError(
            f"encoder {name}: unknown library '{library}'{did_you_mean(library, LIBRARIES)}; "
            f"must be one of {', '.join(LIBRARIES)}, or module:Class for your own"
        )


def open_encoder(name: str, device: torch.device | None = None) -> Any:
    """Load an encoder: a `FrameEncoder`, a `SentenceEncoder`, or both in one.

    Args:
        device: Where it computes; by default a GPU if there is one.

    Raises `UserError` in one line: the name is malformed, a package is not installed, or the weights are not
    available, with the command that fetches them.
    """
    check_name(name)
    library, _, model = name.partition(":")
    if library in LIBRARIES:
        module, class_name, _, _ = LIBRARIES[library]
        return getattr(importlib.import_module(module), class_name)(name, model, device)
    return _own_class(name, library, model)(device)


def open_frame_encoder(name: str, device: torch.device | None = None) -> FrameEncoder:
    """Load an encoder of frames. Raises `UserError` as `open_encoder` does, and if it does not encode frames."""
    check_name(name, "frames")
    encoder = open_encoder(name, device)
    if not isinstance(encoder, FrameEncoder):
        raise UserError(f"encoder {name}: must have name, version, size, precision and encode_frames to encode frames")
    return encoder


def open_sentence_encoder(name: str, device: torch.device | None = None) -> SentenceEncoder:
    """Load an encoder of sentences. Raises `UserError` as `open_encoder` does, and if it does not encode sentences."""
    check_name(name, "sentences")
    encoder = open_encoder(name, device)
    if not isinstance(encoder, SentenceEncoder):
        raise UserError(
            f"encoder {name}: must have name, version, size, precision and encode_sentences to encode sentences"
        )
    return encoder


def encodes_both(name: str) -> bool:
    """Whether one encoder of this name encodes frames and sentences; False for a user's own class."""
    return len(LIBRARIES.get(name.partition(":")[0], ("", "", frozenset(), ""))[2]) == 2


def _own_class(name: str, module: str, class_name: str) -> Any:
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"encoder {name}: module '{module}' cannot be imported: {first_line(error)}"
            f"{did_you_mean(module, LIBRARIES)}; its directory must be on PYTHONPATH"
        ) from None
    if not hasattr(loaded, class_name):
        raise UserError(f"encoder {name}: no '{class_name}' in {module}{did_you_mean(class_name, vars(loaded))}")
    return getattr(loaded, class_name)
