"""Plain data as JSON can hold it, and calls with options as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from portolan.errors import UsageError

_CALL = re.compile(r"(?P<name>\w[\w-]*)(?:\((?P<options>.*)\))?$")
_PAIR = re.compile(r"\s*([\w-]+)\s*=\s*([^,]+?)\s*(?:,|$)")


def finite(data: Any) -> Any:
    """`data` with null for NaN and infinities, which JSON cannot hold, and lists for tuples."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


def html_table(caption: str, rows: Mapping[str, object]) -> str:
    """A table of two columns for notebooks, with everything in it as text."""
    body = "".join(f"<tr><th>{escape(key)}</th><td>{escape(str(value))}</td></tr>" for key, value in rows.items())
    return f"<table><caption>{escape(caption)}</caption>{body}</table>"


def value_text(value: Any) -> str:
    """An option's value as people write it: `true`, `bf16`, `8`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def call_text(name: str, options: Mapping[str, Any]) -> str:
    """A pass or backend with its options: `quantize(bits=8)`; options that are None go without saying."""
    inner = ", ".join(f"{key}={value_text(value)}" for key, value in options.items() if value is not None)
    return f"{name}({inner})" if inner else name


def parse_call(text: str, what: str) -> tuple[str, dict[str, str]]:
    """`NAME(key=value, ...)` as a name and its options.

    Raises:
        UsageError: it is not of that form.
    """
    match = _CALL.match(text.strip())
    if match is None:
        raise UsageError(
            f"the {what} `{text}` cannot be read", hint=f"write `NAME` or `NAME(option=value)` for a {what}"
        )
    inner = match["options"] or ""
    options = {key.replace("-", "_"): value for key, value in _PAIR.findall(inner)}
    if inner.strip() and _PAIR.sub("", inner).strip():
        raise UsageError(f"the options of the {what} `{text}` cannot be read", hint="write `NAME(option=value)`")
    return match["name"], options
