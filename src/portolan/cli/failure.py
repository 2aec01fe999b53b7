"""Turns an exception into `error:`, `at` and `hint:` lines (or the failure object) and an exit code."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import traceback
from pathlib import Path

import click

from portolan.cli.app import VERBS
from portolan.cli.config import nearest
from portolan.cli.console import Console
from portolan.errors import DiskFull, Interrupted, PortolanError, UsageError, no_space


def fail(error: Exception, console: Console, verb: str | None = None) -> int:
    """Prints `error` in the voice of Portolan; gives back its exit code. `verb` is the command that ran, if known."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        console.error(error.format_message())
        return 2
    told = told_as(error, verb)
    saved = save_traceback(error) if told.exit_code == 1 else None
    if console.json:
        console.raw(json.dumps(told.to_json(), ensure_ascii=False))
    else:
        for line in lines(told):
            console.error(line)
    if console.verbose >= 2:
        console.error("".join(traceback.format_exception(error)).rstrip())
    elif saved is not None and console.verbose:
        console.error(f"traceback: {saved}")
    return told.exit_code


def lines(error: PortolanError) -> list[str]:
    """The lines of the message: what happened, where, and what fixes it."""
    told = [f"error: {error.message}"]
    if error.where:
        told.append(f"  at {error.where}")
    if error.hint:
        told.append(f"hint: {error.hint}")
    return told


def told_as(error: Exception, verb: str | None = None) -> PortolanError:
    """The error as one of Portolan's own."""
    if isinstance(error, PortolanError):
        return error
    if isinstance(error, click.Abort):
        # Of the others nothing is kept that would be gone on with.
        saved = "what was measured is saved; repeat the command to go on" if verb == "optimize" else None
        return Interrupted("interrupted", hint=saved)
    if isinstance(error, click.ClickException):
        return _usage(error, verb)
    if isinstance(error, OSError) and no_space(error):
        return DiskFull(f"the disk is full: `{error.filename or tempfile.gettempdir()}` could not be written")
    return PortolanError(
        f"a bug in Portolan: `{type(error).__name__}: {error}`",
        hint="`-v` says where the traceback is saved, `-vv` prints it; please report it",
    )


def _usage(error: click.ClickException, verb: str | None) -> PortolanError:
    ctx = getattr(error, "ctx", None)
    path = f"portolan {verb}" if verb else "portolan"
    help_hint = f"see `{path} --help`"
    usage = f"usage: {path} {VERBS[verb].synopsis}" if verb else help_hint
    if isinstance(error, click.NoSuchOption):
        return _no_such_flag(error, path, ctx)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = _flag(error.param)
        if ctx is not None and isinstance(error.param, click.Argument):
            name = error.param.make_metavar(ctx)
        return UsageError(f"`{path}` needs {name.split()[0]}", hint=usage)
    if isinstance(error, click.BadOptionUsage):
        return UsageError(f"`{error.option_name}` {_needs(error.message)}", hint=help_hint)
    if isinstance(error, click.BadParameter) and error.param is not None and error.param.type is click.BOOL:
        return UsageError(f"`{error.param.opts[-1][2:]}` is true or false", where=place(ctx, error.param))
    if isinstance(error, click.BadParameter):
        return UsageError(_ticked(error.message), where=place(ctx, error.param), hint=help_hint)
    if extra := re.match(r"Got unexpected extra arguments? \((.*)\)", error.message):
        return UsageError(f"`{path}` takes no further argument: `{extra[1]}`", hint=usage)
    return UsageError(_ticked(error.format_message()), hint=help_hint)


def _no_such_flag(error: click.NoSuchOption, path: str, ctx: click.Context | None) -> PortolanError:
    from portolan.cli.options import verbs

    params = ctx.command.get_params(ctx) if ctx else []
    known = [o[2:] for p in params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")]
    others = verbs(ctx) if ctx else {}
    hint = nearest(error.option_name.lstrip("-"), known, others, "--")
    return UsageError(f"`{path}` has no flag `{error.option_name}`", hint=hint or f"see `{path} --help`")


def place(ctx: click.Context | None, param: click.Parameter | None) -> str | None:
    """Where the value of a parameter comes from: `--seed`, `portolan.toml:3` or `PORTOLAN_SEED`."""
    if ctx is None or param is None or param.name is None:
        return None
    if ctx.get_parameter_source(param.name) is click.core.ParameterSource.DEFAULT_MAP:
        origins: dict[str, str] = ctx.meta.get("portolan.origins", {})
        return origins.get(param.name)
    return _flag(param)


def _flag(param: click.Parameter) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return str(param.human_readable_name)


def _needs(message: str) -> str:
    return "takes no value" if "does not take" in message else "needs a value"


def _ticked(message: str) -> str:
    text = message.replace("'", "`").rstrip(".")
    return text[:1].lower() + text[1:]


def save_traceback(error: BaseException) -> Path | None:
    """Writes the traceback to `last-error.txt` in the user's state folder, else to a new temporary file."""
    text = "".join(traceback.format_exception(error))
    path = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "portolan" / "last-error.txt"
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile("w", prefix="portolan-", suffix=".txt", delete=False, encoding="utf-8") as file,
    ):
        file.write(text)
        return Path(file.name)
    return None
