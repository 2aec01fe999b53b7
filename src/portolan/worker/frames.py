"""The frames of workers, by the name that workers know them by; see `portolan.core.frames`."""

from __future__ import annotations

from portolan.core.frames import MAGIC, MAX_BODY, MAX_HEADER, PREFIX, Frame, decode, encode

__all__ = ["MAGIC", "MAX_BODY", "MAX_HEADER", "PREFIX", "Frame", "decode", "encode"]
