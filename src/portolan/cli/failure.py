"""Turns an exception into `error:`, `at` and `hint:` lines (or the failure object) and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import tempfile
import traceback
from pathlib import Path

import click

from portolan.cli.console import Console
from portolan.errors import Interrupted, PortolanError, UsageError


def fail(error: Exception, console: Console) -> int:
    """Prints `error` in the voice of Portolan; gives back its exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        console.error(error.format_message())
        return 2
    told = told_as(error)
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


def told_as(error: Exception) -> PortolanError:
    """The error as one of Portolan's own."""
    if isinstance(error, PortolanError):
        return error
    if isinstance(error, click.Abort):
        return Interrupted("interrupted", hint="what was measured is saved; repeat the command to go on")
    if isinstance(error, click.ClickException):
        return _usage(error)
    return PortolanError(
        f"a bug in Portolan: `{type(error).__name__}: {error}`",
        hint="`-v` says where the traceback is saved, `-vv` prints it; please report it",
    )


def flags(command: click.Command, ctx: click.Context) -> list[str]:
    """The long flags of a command."""
    return [o for p in command.get_params(ctx) if isinstance(p, click.Option) for o in p.opts if o.startswith("--")]


def _usage(error: click.ClickException) -> PortolanError:
    ctx = getattr(error, "ctx", None)
    path = f"`{ctx.command_path}`" if ctx else "`portolan`"
    help_hint = f"see {path[:-1]} --help`"
    if isinstance(error, click.NoSuchOption):
        known = [flag.lstrip("-") for flag in (flags(ctx.command, ctx) if ctx else [])]
        near = difflib.get_close_matches(error.option_name.lstrip("-"), known, n=1, cutoff=0.6)
        hint = f"did you mean `--{near[0]}`?" if near else help_hint
        return UsageError(f"{path} has no flag `{error.option_name}`", hint=hint)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = error.param.make_metavar(ctx) if isinstance(error.param, click.Argument) and ctx else _flag(error.param)
        usage = " ".join(ctx.command.collect_usage_pieces(ctx)) if ctx else ""
        return UsageError(f"{path} needs {name.rstrip('.')}", hint=f"usage: {path.strip('`')} {usage}")
    if isinstance(error, click.BadOptionUsage):
        return UsageError(f"`{error.option_name}` {_needs(error.message)}", hint=help_hint)
    if isinstance(error, click.BadParameter):
        return UsageError(_ticked(error.message), where=place(ctx, error.param), hint=help_hint)
    return UsageError(_ticked(error.format_message()), hint=help_hint)


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
