"""Numbers and lists as text."""

from __future__ import annotations

from dreamprvr_ray.report.formatting import format_count, format_difference, format_duration, format_list, format_value


def test_numbers_and_lists_are_formatted_for_readers() -> None:
    assert [format_value(value) for value in (3e-4, 0.0273412, 0.2, 0.0, 8, True, "tanh", 12345.6, 1e-5, None)] == [
        *("3e-4", "0.0273", "0.2", "0", "8", "true", "tanh", "12346", "1e-5", "-"),
    ]
    assert [format_difference(value) for value in (10.46, -0.04, -3.2)] == ["+10.5", "0.0", "-3.2"]
    assert [format_count(1, "query"), format_count(3, "query"), format_count(2, "trial")] == [
        "1 query",
        "3 queries",
        "2 trials",
    ]
    assert [format_list(["a"]), format_list(["a", "b", "c"])] == ["a", "a, b and c"]
    assert [format_duration(seconds) for seconds in (40, 600, 12240)] == ["40 seconds", "10 minutes", "3.4 hours"]
