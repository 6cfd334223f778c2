from __future__ import annotations

import pytest

from dreamprvr_ray.search.conditions import Condition

VALUES = {"model.registers": 4, "loss.margin": 0.2, "training.precision": "bf16", "model.heads": 2}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("model.registers > 0", True),
        ("model.registers == 0 or loss.margin < 0.1", False),
        ("0 < loss.margin <= 0.2 and not model.registers != 4", True),
        ("model.registers % model.heads == 0", True),
        ("model.registers * 2 - 1 < model.heads / 2 + 1", False),
        ("training.precision == 'bf16'", True),
        ("-model.registers < -3", True),
    ],
)
def test_a_condition_is_evaluated_for_values(text: str, holds: bool) -> None:
    assert Condition.parse(text).holds(VALUES) is holds


def test_a_condition_lists_its_keys() -> None:
    assert Condition.parse("model.registers > 0 and loss.margin < model.heads").keys == (
        "loss.margin",
        "model.heads",
        "model.registers",
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model.registers >",
        "1 < 2",
        "__import__('os').system('true')",
        "model.registers.real()",
        "[m for m in model]",
        "model.registers in (1, 2)",
        "a" * 10**5 + "(",
    ],
)
def test_anything_else_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"condition|names no key"):
        Condition.parse(text)


def test_values_that_cannot_be_compared_raise_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be evaluated"):
        Condition.parse("training.precision > 3").holds(VALUES)
    with pytest.raises(ValueError, match="cannot be evaluated"):
        Condition.parse("1 / (model.heads - 2) > 3").holds(VALUES)
