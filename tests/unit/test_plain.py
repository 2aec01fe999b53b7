"""Plain data as JSON holds it; calls with options as people write them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portolan.core.plain import call_text, finite, html_table, parse_call, value_text
from portolan.errors import UsageError

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


@given(anything)
def test_json_can_hold_it(data: Any) -> None:
    json.dumps(finite(data), allow_nan=False)
    assert finite(finite(data)) == finite(data)


def test_only_what_is_not_finite_becomes_null() -> None:
    assert finite({"a": [1.5, math.nan, (math.inf, "x")], 2: -math.inf}) == {"a": [1.5, None, [None, "x"]], "2": None}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("quantize(bits 8)", "the options of the pass `quantize(bits 8)` cannot be read"),
        ("quantize(bits=8", "the pass `quantize(bits=8` cannot be read"),
        ("", "the pass `` cannot be read"),
    ],
)
def test_calls_that_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_call(text, "pass")
    assert caught.value.message == says
    assert "NAME(option=value)" in str(caught.value.hint)
    assert parse_call("quantize(bits=8, weight-type=s8)", "pass") == ("quantize", {"bits": "8", "weight_type": "s8"})


def test_a_table_holds_everything_as_text() -> None:
    page = html_table("a<b", {"k&": "<script>", "n": 3})
    assert page == "<table><caption>a&lt;b</caption><tr><th>k&amp;</th><td>&lt;script&gt;</td></tr>" + (
        "<tr><th>n</th><td>3</td></tr></table>"
    )


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (False, "false"), (8, "8"), ("bf16", "bf16"), (0.5, "0.5")]
)
def test_values(value: Any, text: str) -> None:
    assert value_text(value) == text


def test_calls() -> None:
    assert call_text("simplify", {}) == "simplify"
    assert call_text("simplify", {"shapes": None}) == "simplify"
    assert call_text("quantize", {"bits": 8, "per_channel": False}) == "quantize(bits=8, per_channel=false)"
