"""`portolan kernel`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("kernel", short_help="check, tune and compile a custom operator")
@click.argument("file", type=click.Path(), metavar="FILE.py")
@options.target
@options.out("A folder for the libraries and their source.  [default: the cache keeps them]")
@click.option("--emit", metavar="LANGUAGE", help="Print the code: c, cuda, opencl, triton, wgsl, or a plug-in's.")
@click.option("--arch", metavar="NAME", help="Compile for aarch64, riscv64, riscv64v or wasm32; needs zig.")
@click.option("--onnx", metavar="OUT", help="Write each kernel as an ONNX function: OUT.onnx, or a folder.")
@click.option("--for", "model", metavar="MODEL", help="Put the kernels into a model, verify and race it; -o: a bundle.")
@options.backend
@options.data
@options.shapes
@options.budget
@click.option("--grad", is_flag=True, help="Derivatives too: the kernels of each one's gradient, in reverse mode.")
@options.seed
@options.writes
@options.common
@click.pass_obj
def command(
    console: Console, /, file: str, emit: str | None, onnx: str | None, model: str | None, dry_run: bool, **rest: Any
) -> int:
    """Check, tune and compile a custom operator.

    Works on every function under `@kernel` in the file, which is read and not run. A line such as
    `shapes(tropical, i=512, k=512, j=512)` beside one names sizes to tune for. `--target` also takes a
    language (cuda, opencl, triton, wgsl): the hardware that runs it here. `--dry-run` says which can, what is missing,
    and the command that adds it.
    """
    from portolan import kernels
    from portolan.cli import show_kernel

    inside = {name: rest.pop(name) for name in ("backend", "data", "shapes", "budget")}
    if model is not None:
        return _inside(console, file, model, dry_run, {**rest, **inside})
    if emit is not None:
        code = kernels.emitted(file, emit)
        console.raw(json.dumps({"language": emit, "code": code}) if console.json else code)
        return 0
    if onnx is not None:
        with console.progress() as progress:
            data = kernels.export(file, onnx, force=rest["force"], dry_run=dry_run, progress=progress)
        return console.answer(data, lambda: show_kernel.functions(data, dry_run=dry_run))
    with console.progress() as progress:
        data = kernels.build(file, dry_run=dry_run, progress=progress, **rest)
    return console.answer(data, lambda: show_kernel.kernels(data, file, dry_run=dry_run))


def _inside(console: Console, file: str, model: str, dry_run: bool, given: dict[str, Any]) -> int:
    """`--for MODEL`: the kernels in a model, end to end."""
    from portolan import embedding
    from portolan.cli import show_kernel

    asked = embedding.Asked(
        out=None if given["out"] is None or dry_run else Path(given["out"]),
        backends=tuple(given["backend"] or ()),
        **{name: given[name] for name in ("data", "shapes", "budget", "seed", "force")},
    )
    with console.progress() as progress:
        data = embedding.embed(file, model, asked, progress)
    return console.answer(data, lambda: show_kernel.embedded(data, file))
