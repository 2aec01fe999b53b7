"""How a headless Chromium is started: on one page of ours, with WebGPU in software, and with nothing else to do."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")

FLAGS = (
    "--headless=new", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader",
    "--no-first-run", "--no-default-browser-check", "--no-pings", "--mute-audio", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-domain-reliability",
    "--disable-breakpad", "--disable-crash-reporter", "--disable-extensions", "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

_LONGEST = 60


def found() -> str | None:
    """The browser: PORTOLAN_CHROMIUM, else the first of the usual names; None where there is none."""
    asked = os.environ.get("PORTOLAN_CHROMIUM")
    return next(filter(None, map(shutil.which, [asked] if asked else NAMES)), None)


def command(program: str, profile: Path, address: str) -> list[str]:
    """The command line of a browser on `address`; `profile` is a folder of its own."""
    # Without a user of its own to drop rights to, the browser's sandbox refuses to start.
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    return [program, *FLAGS, *root, f"--user-data-dir={profile}", address]


def environment(profile: Path) -> dict[str, str]:
    """Its environment: what it writes below a home folder, and its socket, go with the profile."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    # A socket's path has at most 107 characters, of which the browser wants about 45; with more it never starts.
    short = next((f for f in (str(profile), tempfile.gettempdir()) if len(f) <= _LONGEST), "/tmp")
    return kept | {"HOME": str(profile), "TMPDIR": short}
