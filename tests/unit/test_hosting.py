"""What the process that serves asks of the one that opens bundles."""

from __future__ import annotations

import sys

import pytest

from portolan import hosting
from portolan.errors import PortolanError


def test_an_opener_that_dies_is_told_with_its_last_words() -> None:
    opener = [sys.executable, "-c", "import sys; sys.exit('it fell over')"]
    with pytest.raises(PortolanError, match="the process that opens bundles failed: it fell over"):
        hosting._named(["b.portolan"], opener)
