"""Opening bundles from the front: in a process of its own, since it hashes, unpacks and reads what strangers made."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from portolan.errors import ModelError, PortolanError, rebuilt
from portolan.serving.calls import Refusal
from portolan.serving.settings import Settings
from portolan.serving.source import Source

_SECONDS = 600.0


class Opener:
    """Opens the bundles that the settings name; call it with a model's name.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __call__(self, model: str) -> Source:
        """What replicas of `model` load: a private, verified copy of its bundle's compiled files.

        Raises:
            PortolanError: the bundle is damaged, cannot run here, or is gone.
            Refusal: no bundle was given for that name.
        """
        path = self._settings.bundles.get(model)
        if path is None:
            raise Refusal("not_found", f"the repository has no model named `{model}`")
        folder = Path(tempfile.mkdtemp(prefix="portolan-serve-"))
        try:
            asked = {"bundle": path, "into": str(folder), "native": self._settings.native}
            answer = await _ask(self._settings.opener, asked)
            if (problem := answer.get("error")) is not None:
                raise rebuilt(problem)
            source = Source.from_json(answer["source"])
            if source.name != model:
                said = f"the bundle `{path}` is now called `{source.name}`, and it was opened as `{model}`"
                raise ModelError(said, hint="start the server again with the new name")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return source.limited(**self._settings.limits)


async def _ask(argv: tuple[str, ...], asked: Mapping[str, Any]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(json.dumps(asked).encode()), _SECONDS)
    except TimeoutError:
        raise ModelError(f"`{asked['bundle']}` was not opened within {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
    try:
        answer = json.loads(out)
    except ValueError:
        lines = err.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        said = f"the process that opens bundles ended with code {process.returncode}: {lines[-1][:300]}"
        raise PortolanError(said) from None
    return dict(answer)
