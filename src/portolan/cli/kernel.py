"""`portolan kernel`."""

from __future__ import annotations

import json
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
@options.seed
@options.writes
@options.common
@click.pass_obj
def command(console: Console, /, file: str, emit: str | None, onnx: str | None, dry_run: bool, **rest: Any) -> int:
    """Check, tune and compile a custom operator.

    Works on every function under `@kernel` in the file, which is read and not run. A line such as
    `shapes(tropical, i=512, k=512, j=512)` beside one names sizes to tune for. `--target` also takes a
    language (cuda, opencl, triton, wgsl): the hardware that runs it here. `--dry-run` says which can, what is missing,
    and the command that adds it.
    """
    from portolan import kernels
    from portolan.cli import show_kernel

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
