"""The code that all kernels of a language share, kept in files of that language."""

from __future__ import annotations

import re
from pathlib import Path

_INCLUDED = re.compile(r'^#include "(\w+\.h)"\n', re.MULTILINE)


def shared(name: str) -> str:
    """The text of a file beside this one, with those that it includes from here put in."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return _INCLUDED.sub(lambda found: shared(found[1]), text)
