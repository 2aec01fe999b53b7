"""Plain data as JSON can hold it, and calls with options as people write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def finite(data: Any) -> Any:
    """`data` with null for NaN and infinities, which JSON cannot hold, and lists for tuples."""
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return data


def value_text(value: Any) -> str:
    """An option's value as people write it: `true`, `bf16`, `8`."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def call_text(name: str, options: Mapping[str, Any]) -> str:
    """A pass or backend with its options: `quantize(bits=8)`; options that are None go without saying."""
    inner = ", ".join(f"{key}={value_text(value)}" for key, value in options.items() if value is not None)
    return f"{name}({inner})" if inner else name
