"""The bundle: what is shipped, how it is made, verified and run.

Reading and running one needs NumPy, its runtime and this part of Portolan; nothing of the controller is imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portolan.bundle.golden import Tolerance
    from portolan.bundle.manifest import Manifest, Needs
    from portolan.bundle.pack import Packed, check, export, pack_parts, unpack
    from portolan.bundle.read import Bundle, is_bundle, open_bundle
    from portolan.bundle.verify import Verification, verify_isolated
    from portolan.bundle.write import BundleParts, write_bundle

_PLACES = {
    "Bundle": "read",
    "BundleParts": "write",
    "Manifest": "manifest",
    "Needs": "manifest",
    "Packed": "pack",
    "Tolerance": "golden",
    "Verification": "verify",
    "check": "pack",
    "export": "pack",
    "is_bundle": "read",
    "open_bundle": "read",
    "pack_parts": "pack",
    "unpack": "pack",
    "verify_isolated": "verify",
    "write_bundle": "write",
}
__all__ = [
    "Bundle",
    "BundleParts",
    "Manifest",
    "Needs",
    "Packed",
    "Tolerance",
    "Verification",
    "check",
    "export",
    "is_bundle",
    "open_bundle",
    "pack_parts",
    "unpack",
    "verify_isolated",
    "write_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"portolan.bundle.{_PLACES[name]}"), name)
    raise AttributeError(f"module `portolan.bundle` has no attribute `{name}`")
