"""What `portolan serve` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def ready(data: Mapping[str, Any]) -> str:
    """The one line of a server that takes requests."""
    names = ", ".join(f"`{item['name']}`" for item in data["ready"])
    grpc = f", gRPC at {data['grpc']}" if data["grpc"] else ""
    return f"serving {names or 'nothing'} at {data['url']}{grpc}"


def note(data: Mapping[str, Any]) -> str | None:
    """What happened meanwhile, as one line; None for what needs none."""
    if "warning" in data:
        return str(data["warning"])
    if "closing" in data:
        return "stopping: what was taken is answered"
    if "restarting" in data:
        return f"the server's front ended with code {data['code']}; another one starts"
    if "loaded" in data and data["version"] != "1":
        how = "" if data["reason"] == "swap" else f", on trial as {data['reason']}"
        return f"`{data['loaded']}` version {data['version']} is loaded{how}"
    if "promoted" in data:
        return f"`{data['promoted']}` version {data['version']} takes over"
    if "rolled_back" in data:
        return f"`{data['rolled_back']}` version {data['version']} is rolled back: {data['reason']}"
    if "kept" in data:
        return f"`{data['kept']}` was not loaded again, the old version serves on: {data['reason']}"
    if "failed" in data:
        return f"`{data['failed']}` does not serve: {data['error']['message']}"
    return None
