"""`portolan inspect`."""

from __future__ import annotations

from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("inspect", short_help="what a model is")
@click.argument("model", type=click.Path())
@options.shapes
@options.target
@options.common
@click.pass_obj
def command(console: Console, /, model: str, shapes: dict[str, Any] | None, target: str) -> int:
    """What a model is: signature, operators, FLOPs, bytes.

    MODEL is an `.onnx` file, a file or folder of another framework, `file.py:factory` or `demo:digits`.
    """
    from portolan import api
    from portolan.cli import show

    data = api.inspect(model, shapes=shapes, target=target).to_json()
    return console.answer(data, lambda: show.inspection(data, model))
