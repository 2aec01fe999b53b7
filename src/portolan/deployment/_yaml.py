"""YAML that people read: comments above keys, plain words unquoted, and everything else quoted.

Quoting is decided here rather than left to a library, so that no text of a bundle can become another key, another type
or another document: a string that is no plain word is written in double quotes, with everything unusual escaped.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH = 110
_PLAIN = re.compile(r"(?:--)?[A-Za-z/][A-Za-z0-9_./-]*(?:[:@][A-Za-z0-9_./-]+)*\Z")
#: Words that some version of YAML reads as a truth value or as nothing.
_WORDS = frozenset(("y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"))
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True)
class Said:
    """A value with the comment that stands above its key."""

    value: Any
    why: str


def dump(data: Mapping[str, Any], head: Sequence[str] = ()) -> str:
    """One document: the lines of `head` as a comment, then `data`."""
    lines = [line for text in head for line in comment(text)]
    return "\n".join([*lines, *([""] if lines else []), *_mapping(data, "")]) + "\n"


def comment(text: str, indent: str = "") -> list[str]:
    """`text` as lines of a comment; nothing in it can end the comment."""
    safe = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.wrap(
        safe, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_on_hyphens=False
    )


def sentence(*parts: str) -> str:
    """Reasons as sentences: each begins with a capital and ends with a full stop."""
    return " ".join(part[:1].upper() + part[1:] + "." for part in parts)


def quote(text: str) -> str:
    """A string as one word, or in double quotes."""
    if _PLAIN.match(text) and text.lower() not in _WORDS:
        return text
    return '"' + "".join(_character(c) for c in text) + '"'


def _character(c: str) -> str:
    if c in _ESCAPES:
        return _ESCAPES[c]
    # Lone surrogates are no characters, and cannot be written.
    if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF:
        return c
    return f"\\x{ord(c):02x}" if ord(c) < 0x100 else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"


def _mapping(data: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in data.items():
        if isinstance(value, Said):
            lines += comment(value.why, indent)
            value = value.value
        lines += _entry(f"{indent}{quote(key)}:", value, indent)
    return lines


def _entry(start: str, value: Any, indent: str) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [start, *_mapping(value, indent + "  ")]
    if isinstance(value, (list, tuple)) and value:
        return [start, *(line for item in value for line in _item(item, indent))]
    return [f"{start} {_scalar(value)}"]


def _item(item: Any, indent: str) -> list[str]:
    if not isinstance(item, Mapping) or not item:
        return [f"{indent}- {_scalar(item)}"]
    lines = _mapping(item, indent + "  ")
    first = next(i for i, line in enumerate(lines) if not line.lstrip().startswith("#"))
    # A comment above the first key goes above the dash.
    above = [indent + line[len(indent) + 2 :] for line in lines[:first]]
    return [*above, f"{indent}- {lines[first][len(indent) + 2 :]}", *lines[first + 1 :]]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return quote(value)
    return "{}" if isinstance(value, Mapping) else "[]"
