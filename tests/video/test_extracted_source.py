"""Splits drawn by video, and names of features."""

from __future__ import annotations

import pytest

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.captions import CaptionRow
from dreamprvr_ray.video.extracted_source import SplitSettings, choose_splits, features_name


def captions(videos: int, split: str | None = None) -> list[tuple[str, CaptionRow]]:
    return [(f"v{number % videos:02d}", CaptionRow(number, "x", "y", split=split)) for number in range(3 * videos)]


def test_splits_are_drawn_by_video_and_seed() -> None:
    splits = choose_splits(captions(100), SplitSettings())
    counts = [list(splits.values()).count(name) for name in ("train", "val", "test")]
    assert counts == [70, 10, 20]
    assert splits == choose_splits(captions(100)[::-1], SplitSettings())
    assert splits != choose_splits(captions(100), SplitSettings(seed=1))
    assert sorted(choose_splits(captions(3), SplitSettings()).values()) == ["test", "train", "val"]
    assert list(choose_splits(captions(2), SplitSettings()).values()) == ["test", "test"]
    assert choose_splits(captions(5, "val"), SplitSettings()) == {}


@pytest.mark.parametrize(
    ("val", "test", "seed", "message"),
    [
        (0, 0.2, 0, "--val-fraction 0: must be above 0 and below 1"),
        (0.1, 1.5, 0, "--test-fraction 1.5: must be above 0 and below 1"),
        (0.5, 0.5, 0, "leave no video to train on"),
        (0.1, 0.2, -1, "--seed -1: must be 0 or more"),
    ],
)
def test_wrong_fractions(val: float, test: float, seed: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SplitSettings(val, test, seed)


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip-ViT-B-32-laion2b_s34b_b79k"),
        ("timm:/home/me/models/lite0/", "timm-lite0"),
        ("transformers:./siglip", "transformers-siglip"),
        ("timm:..", "timm"),
    ],
)
def test_features_are_named_by_their_encoder(encoder: str, name: str) -> None:
    assert features_name(encoder) == name
