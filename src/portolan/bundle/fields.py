"""Strict reading of plain JSON: what was expected, what was got, and the path to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from portolan.bundle.names import broken, show
from portolan.errors import UnknownName, VerificationFailed

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
_DEEPEST = 16


def decode(raw: bytes, file: str) -> Any:
    """Parses JSON and refuses what parsers disagree about: double keys, NaN, other encodings.

    Raises:
        VerificationFailed: not such JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not JSON")

    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "too deep" if isinstance(error, RecursionError) else show(str(error))
        raise broken(f"`{file}` is not valid JSON: {reason}") from error


def encode(data: Any) -> bytes:
    """The one spelling of `data`: sorted keys, ASCII, one space of indentation, a final newline."""
    return (json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Node:
    """A value somewhere in a JSON file."""

    value: Any
    file: str
    path: str = "$"

    @property
    def where(self) -> str:
        """The place, as errors name it."""
        return f"{self.file}: {show(self.path)}"

    def wrong(self, expected: str) -> VerificationFailed:
        """The error for a value that does not fit."""
        got = "null" if self.value is None else _KINDS.get(type(self.value), "something else")
        if isinstance(self.value, (str, int, float)) and not isinstance(self.value, bool):
            got = f"`{show(str(self.value), 40)}`"
        return broken(f"expected {expected}, got {got}", self.where)

    def _mapping(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def keys(self, *known: str, optional: Sequence[str] = ()) -> None:
        """Checks that this is an object with exactly the keys `known`, and at most `optional`."""
        data = self._mapping()
        for key in data:
            if key not in known and key not in optional:
                hint = UnknownName("key", show(key), [*known, *optional]).hint
                raise VerificationFailed(f"there is no key `{show(key)}`", hint=hint, where=self.where)
        for key in known:
            if key not in data:
                raise broken(f"the key `{key}` is missing", self.where)

    def __getitem__(self, key: str) -> Node:
        return Node(self._mapping().get(key), self.file, f"{self.path}.{key}")

    def items(self) -> Iterator[tuple[str, Node]]:
        """The members of an object, whatever their names, as far as these can be printed."""
        for key in self._mapping():
            yield Node(key, self.file, f"{self.path} key").text(), self[key]

    def list(self) -> Iterator[Node]:
        """The items of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for i, item in enumerate(self.value):
            yield Node(item, self.file, f"{self.path}[{i}]")

    def text(self, pattern: str = r".+", expected: str = "text of one line", longest: int = 400) -> str:
        """A printable string that matches `pattern` as a whole."""
        value = self.value
        if not isinstance(value, str) or len(value) > longest or not value.isprintable():
            raise self.wrong(expected)
        if not re.fullmatch(pattern, value):
            raise self.wrong(expected)
        return value

    def prose(self, longest: int = 100_000) -> str:
        """A string of any lines, without control characters."""
        if not isinstance(self.value, str) or len(self.value) > longest or _CONTROL.search(self.value):
            raise self.wrong("text without control characters")
        return self.value

    def sha256(self) -> str:
        """A SHA-256 in hexadecimal."""
        return self.text(r"[0-9a-f]{64}", "a sha256 of 64 hexadecimal digits")

    def whole(self, least: int = 0) -> int:
        """A whole number, at least `least`."""
        if type(self.value) is not int or not least <= self.value < 2**62:
            raise self.wrong(f"a whole number of at least {least}")
        return self.value

    def number(self, least: float | None = None) -> float:
        """A finite number. An int stays one: the file is compared with its canonical spelling."""
        value = self.value
        if type(value) not in (int, float) or abs(value) > 1e300 or (least is not None and value < least):
            raise self.wrong("a number" if least is None else f"a number of at least {least:g}")
        return value  # type: ignore[no-any-return]

    def choice(self, *allowed: str) -> str:
        """One of a few words."""
        if self.value not in allowed:
            raise self.wrong(" or ".join(f"`{a}`" for a in allowed))
        return str(self.value)

    def plain(self, depth: int = 0) -> Any:
        """Any JSON value, as long as its text can be printed and it is not too deep."""
        if depth > _DEEPEST:
            raise self.wrong("a value that is nested less deeply")
        if isinstance(self.value, dict):
            return {key: node.plain(depth + 1) for key, node in self.items()}
        if isinstance(self.value, list):
            return [node.plain(depth + 1) for node in self.list()]
        if isinstance(self.value, str):
            return self.prose()
        return self.value
