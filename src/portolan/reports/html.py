"""The few functions through which every byte of a study passes on its way into HTML or an inline script."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from portolan.core.plain import finite
from portolan.reports.checked import clean

_CODE = re.compile("`([^`]*)`")


def esc(text: Any) -> str:
    """`text` as HTML text or as the value of a quoted attribute."""
    return html.escape(clean(text), quote=True)


def rich(text: str) -> str:
    """A sentence as HTML, with what is in backticks as code."""
    return _CODE.sub(r"<code>\1</code>", esc(text))


def tag(name: str, inner: str, **attributes: Any) -> str:
    """An element around `inner`, which is HTML already. A trailing `_` is dropped, other `_` become `-`."""
    told = "".join(f' {k.rstrip("_").replace("_", "-")}="{esc(v)}"' for k, v in attributes.items() if v is not None)
    return f"<{name}{told}>{inner}</{name}>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], **attributes: Any) -> str:
    """A table of cells that are HTML already; the first cell of each row is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>' for first, *rest in rows
    )
    inner = f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return tag("div", tag("table", inner, **attributes), class_="scroll")


def embed(data: Any) -> str:
    """`data` as JSON that is inert inside a script element: no `<`, `>`, `&`, no line separator, no NaN."""
    text = json.dumps(finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=str)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def source_hash(text: str) -> str:
    """The hash that a Content-Security-Policy names to allow exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
