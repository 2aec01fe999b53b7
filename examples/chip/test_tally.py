"""The chip keeps the contract: every kernel of the kit runs on it and agrees with NumPy."""

from __future__ import annotations

from portolan_tally import tally

from portolan.testing import LanguageContract


class TestTally(LanguageContract):
    """The whole kit."""

    language = tally
