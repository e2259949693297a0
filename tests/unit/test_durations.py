"""Durations, rates and sizes: what people write is what they get, and what is shown can be written back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellerd.durations import (
    LARGEST,
    LONGEST_S,
    MOST,
    SHORTEST_S,
    Rate,
    duration,
    format_duration,
    parse_duration,
    parse_rate,
    parse_rates,
    parse_size,
    size,
)


@given(st.integers(0, int(LONGEST_S)))
def test_whole_seconds_survive_a_round_trip(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == seconds


@given(st.integers(1, int(LONGEST_S) * 1000))
def test_milliseconds_survive_a_round_trip(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9, rel=1e-12)


@given(st.just(0.0) | st.floats(SHORTEST_S, LONGEST_S))
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


@pytest.mark.parametrize(
    "text", ["", "30", "30 minutes", "-5s", "1e3s", "5m30", "s", "5M", "1,5h", "inf", "5m,2s", "٣s"]
)
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


@pytest.mark.parametrize(
    "text", ["2", "2/", "/1h", "0/1h", "-1/1h", "1.5/1h", "2/0s", "2/1", "two/1h", "2/1h/3", "", "٢/1h"]
)
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


@pytest.mark.parametrize(("raw", "seconds"), [("1h", 3600.0), (30, 30.0), (1.5, 1.5), (0, 0.0), (LONGEST_S, LONGEST_S)])
def test_a_number_is_seconds(raw: object, seconds: float) -> None:
    assert duration(raw) == seconds
    assert isinstance(duration(raw), float)


@pytest.mark.parametrize("raw", [-1, -0.5, float("nan"), True, None, [], b"1h"])
def test_what_is_neither_text_nor_a_number_from_zero_is_no_duration(raw: object) -> None:
    with pytest.raises(ValueError, match=r"is not a duration: it must be zero or more|write it as text with a unit"):
        duration(raw)


@pytest.mark.parametrize(
    "raw", ["3651d", "500000w", "9" * 15 + "w", "999999999999999w " * 5, 1e300, float("inf"), 10**400]
)
def test_no_duration_is_longer_than_ten_years(raw: object) -> None:
    with pytest.raises(ValueError, match="is too long: the longest duration is 3650d"):
        duration(raw)


@pytest.mark.parametrize("raw", ["0.0001ms", "0.5ms", 1e-9])
def test_no_duration_but_zero_is_shorter_than_a_millisecond(raw: object) -> None:
    with pytest.raises(ValueError, match="is too short: the shortest duration is 1ms"):
        duration(raw)


@pytest.mark.parametrize("text", ["1/9999999w", f"{MOST + 1}/1s", f"{'9' * 15}/1s", "1/0.1ms"])
def test_a_rate_has_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=r"is too (long|short|much)"):
        parse_rate(text)


def test_a_rate_that_an_older_version_wrote_down_is_brought_within_the_bounds() -> None:
    assert parse_rates("1/9999999w, 99999999/1s, 2/0.1ms") == (Rate(1, LONGEST_S), Rate(MOST, 1.0), Rate(2, SHORTEST_S))


@pytest.mark.parametrize("raw", ["9999999GiB", LARGEST + 1])
def test_no_size_is_larger_than_a_pebibyte(raw: object) -> None:
    with pytest.raises(ValueError, match="is too large: the largest size is 1048576GiB"):
        size(raw)


@pytest.mark.parametrize("raw", [-5, 1.5, True, None])
def test_what_is_neither_text_nor_a_whole_number_from_zero_is_no_size(raw: object) -> None:
    with pytest.raises(ValueError, match=r"is not a size: it must be zero or more|write it as text with a unit"):
        size(raw)
