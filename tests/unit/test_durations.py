"""Durations, rates and sizes: what people write is what they get, and what is shown can be written back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.durations import Rate, format_duration, parse_duration, parse_rate, parse_size


@given(st.integers(0, 10**9))
def test_whole_seconds_survive_a_round_trip(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == seconds


@given(st.integers(1, 10**10))
def test_milliseconds_survive_a_round_trip(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9, rel=1e-12)


@given(st.floats(0, 10**9))
def test_any_duration_is_shown_in_a_form_that_can_be_read_to_the_millisecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=0.00051)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), ("2d", 172800), ("1w", 604800),
        (" 1h 30m ", 5400), ("0s", 0), ("10 s", 10),
    ],
)  # fmt: skip
def test_a_duration_is_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "30 minutes", "-5s", "1e3s", "5m30", "s", "5M", "1,5h", "inf", "5m,2s"])
def test_what_is_no_duration_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write a number with a unit") as caught:
        parse_duration(text)
    assert f'"{text}"' in str(caught.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5400.0, "1h30m"), (0.0, "0s"), (0.25, "250ms"), (1.5, "1.5s"), (86400.0, "1d"), (3600.5, "1h0.5s"), (61, "1m1s")],
)
def test_a_duration_is_shown_as_short_as_it_is_exact(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(1, 10**6), st.integers(1, 10**7))
def test_a_rate_survives_a_round_trip(limit: int, seconds: int) -> None:
    rate = Rate(limit, float(seconds))
    assert parse_rate(str(rate)) == rate


@pytest.mark.parametrize("text", ["2", "2/", "/1h", "0/1h", "-1/1h", "1.5/1h", "2/0s", "2/1", "two/1h", "2/1h/3", ""])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a (rate|duration)"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("512B", 512), ("64KiB", 65536), ("256 MiB", 268435456), (" 2GiB ", 2147483648)]
)
def test_a_size_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1.5MiB", "64KB", "-1", "64 kib", "MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write bytes with a unit"):
        parse_size(text)
