"""Numbers are read and written without losing or inventing anything."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portolan import units
from portolan.errors import UsageError

finite = st.floats(-1e300, 1e300)
sizes = st.floats(1e-12, 1e12)


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("8ms", "time", 0.008),
        (" 8 ms ", "time", 0.008),
        ("300s", "time", 300.0),
        ("5min", "time", 300.0),
        ("1.5h", "time", 5400.0),
        ("3µs", "time", 3e-6),
        ("3us", "time", 3e-6),
        ("25MiB", "bytes", 25 * 2**20),
        ("1_000 kB", "bytes", 1e6),
        ("1e3B", "bytes", 1000.0),
        ("1%", "share", 0.01),
        ("35%", "share", 0.35),
        ("0.5pp", "share", 0.005),
        ("0.01", "share", 0.01),
        ("100", "rate", 100.0),
        ("100/s", "rate", 100.0),
        ("2 Wh", "energy", 7200.0),
        ("0.3$", "money", 0.3),
        ("1kg", "carbon", 1000.0),
        (".5s", "time", 0.5),
        ("5.s", "time", 5.0),
        ("-1%", "share", -0.01),
        ("+1%", "share", 0.01),
    ],
)
def test_parse(text: str, dimension: str, value: float) -> None:
    assert units.parse(text, dimension) == value


def test_parse_into_a_unit() -> None:
    assert units.parse("8.3ms", "time", into="ms") == 8.3
    assert units.parse("8us", "time", into="ms") == 0.008
    assert units.parse("2s", "time", into="ms") == 2000.0


@given(st.decimals(0, 10_000, places=3), st.sampled_from(["us", "ms", "s"]))
def test_parse_is_exact_to_the_last_bit(number: object, unit: str) -> None:
    exact = Fraction(str(number)) * {"us": Fraction(1, 1000), "ms": 1, "s": 1000}[unit]
    assert units.parse(f"{number}{unit}", "time", into="ms") == float(exact)


@pytest.mark.parametrize(
    ("text", "dimension", "message", "hint"),
    [
        ("fast", "time", "`fast` is not a number with a unit", "write for example `8ms`"),
        ("", "share", "`` is not a number with a unit", "write for example `1%`"),
        ("nan", "share", "`nan` is not a number with a unit", "write for example `1%`"),
        ("1__0ms", "time", "`1__0ms` is not a number with a unit", "write for example `8ms`"),
        ("8 ms p95", "time", "`8 ms p95` is not a number with a unit", "write for example `8ms`"),
        ("x", "energy", "`x` is not a number with a unit", "write for example `5mJ`"),
        (
            "1,500ms", "time", "`1,500ms` is not a number with a unit",
            "write `1.5` for one and a half, and `1_500` for fifteen hundred",
        ),
        ("8", "time", "`8` has no unit of time", "use one of ns, us, µs, ms, s, min, h"),
        ("8", "bytes", "`8` has no unit of bytes", "use one of B, kB, KB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ("8MiB", "time", "`MiB` is not a unit of time in `8MiB`", "use one of ns, us, µs, ms, s, min, h"),
        ("1e999ms", "time", "`1e999ms` is too large a number", "write for example `8ms`"),
        ("1e308h", "time", "`1e308h` is too large a number", "write for example `8ms`"),
    ],
)  # fmt: skip
def test_what_cannot_be_parsed(text: str, dimension: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse(text, dimension)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_tiny_exponent_costs_no_time() -> None:
    assert units.parse("1e-999999999s", "time") == 0.0


@pytest.mark.parametrize(
    ("value", "unit", "scaled"),
    [
        (0.0, "B", (0.0, "B")),
        (1023, "B", (1023, "B")),
        (1024, "B", (1.0, "KiB")),
        (-(2**21), "B", (-2.0, "MiB")),
        (3 * 2**40, "B", (3072.0, "GiB")),
        (0.25, "share", (25.0, "%")),
        (0.05, "ms", (50.0, "µs")),
        (0.0, "ms", (0.0, "ms")),
        (0.1, "ms", (0.1, "ms")),
        (9_999.0, "ms", (9_999.0, "ms")),
        (10_000.0, "ms", (10.0, "s")),
        (5.0, "J", (5.0, "J")),
    ],
)
def test_scale(value: float, unit: str, scaled: tuple[float, str]) -> None:
    assert units.scale(value, unit) == scaled


@pytest.mark.parametrize(
    ("value", "noise", "text"),
    [
        (7.8123, 0.06, "7.81"),
        (7.8123, None, "7.81"),
        (0.3, None, "0.300"),
        (1234.5, None, "1,234"),
        (12_345.0, 346.0, "12,300"),
        (346.0, 346.0, "300"),
        (6.9, 0.0962, "6.9"),
        (0.0962, 0.0962, "0.1"),
        (-0.0001, 0.1, "0.0"),
        (0.0, None, "0.00"),
        (2.4e-7, None, "2.40e-07"),
        (2.4e-7, 3e-8, "2.4e-07"),
        (1e-8, 3e-7, "1e-08"),
        (5.0, 0.0, "5.00"),
        (5.0, math.inf, "5.00"),
        (5.0, math.nan, "5.00"),
        (math.nan, 0.1, "not a number"),
        (math.inf, None, "infinite"),
        (-math.inf, None, "-infinite"),
    ],
)
def test_digits(value: float, noise: float | None, text: str) -> None:
    assert units.digits(value, noise) == text


@pytest.mark.parametrize(
    ("value", "noise", "text"),
    [
        (0.9996, None, "0.9996"),
        (0.99996, None, "0.99996"),
        (0.9994, None, "0.999"),
        (0.9996, 0.01, "0.9996"),
        (0.96, 0.2, "0.96"),
        (1 - 1e-12, None, "0.999999999"),
        (1.0, None, "1.00"),
        (1.0, 0.001, "1.000"),
        (1.0004, None, "1.00"),
    ],
)
def test_digits_do_not_round_up_to_perfect(value: float, noise: float | None, text: str) -> None:
    assert units.digits(value, noise, full=1.0) == text


def number(text: str) -> float:
    return float(text.replace(",", ""))


@given(sizes, st.booleans())
def test_three_significant_digits_without_noise(value: float, negative: bool) -> None:
    value = -value if negative else value
    assert number(units.digits(value, None)) == pytest.approx(value, rel=5.1e-3)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
@example(475000001.0, 950000000.0)
def test_what_is_written_is_within_the_noise(value: float, noise: float) -> None:
    """Off by at most half of the last digit; the last digit is at most the noise as a reader sees it, in one digit."""
    seen = float(f"{noise:.0e}")
    assert abs(number(units.digits(value, noise)) - value) <= 0.5 * seen * (1 + 1e-9) + abs(value) * 1e-15 + 5e-10


@given(st.floats(-1e9, 1e9), st.floats(1e-5, 1e9))
@example(6.9, 0.0962)
def test_never_more_digits_than_the_noise_allows(value: float, noise: float) -> None:
    """The last digit stands for at least half of the noise's own first digit's place."""
    text = units.digits(value, noise)
    places = len(text.partition(".")[2])
    rounded = float(f"{noise:.0e}")
    assert places <= max(0, -math.floor(math.log10(rounded)))
    whole = number(text)
    if rounded >= 10 and whole:
        assert whole % 10 ** math.floor(math.log10(rounded)) == 0


@given(st.floats(0, 1, exclude_max=True), st.none() | st.floats(1e-9, 1))
def test_only_full_is_written_as_full(value: float, noise: float | None) -> None:
    assert number(units.digits(value, noise, full=1.0)) < 1
    assert number(units.digits(100 * value, noise, full=100.0)) < 100 or 100 * value == 100


@given(st.floats(1e-9, 1e15), st.sampled_from([("ms", "time"), ("B", "bytes"), ("share", "share"), ("J", "energy")]))
def test_what_is_written_can_be_read(value: float, kind: tuple[str, str]) -> None:
    unit, dimension = kind
    text = units.write(value, unit).replace(",", "")
    again = units.parse(text, dimension, into="ms" if unit == "ms" else None)
    assert again == pytest.approx(value, rel=5.1e-3, abs=0.51 if unit == "B" else 0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (97.8 * 2**20, "B", "97.8 MiB"),
        (812, "B", "812 B"),
        (8, "B", "8 B"),
        (0, "B", "0 B"),
        (0.003, "share", "0.300%"),
        (2.5, "", "2.50"),
    ],
)
def test_write(value: float, unit: str, text: str) -> None:
    assert units.write(value, unit) == text


@given(finite, st.none() | finite)
def test_digits_take_any_number(value: float, noise: float | None) -> None:
    text = units.digits(value, noise)
    assert math.isfinite(number(text))
    assert not text.startswith("-0.0") or any(c in "123456789" for c in text)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (25_557_032, "", "25.6 M"),
        (8.21e9, "FLOP", "8.21 GFLOP"),
        (2.5e12, "B/s", "2.50 TB/s"),
        (1_234, "", "1.23 k"),
        (812, "", "812"),
        (0, "FLOP", "0 FLOP"),
    ],
)
def test_count(value: float, unit: str, text: str) -> None:
    assert units.count(value, unit) == text
