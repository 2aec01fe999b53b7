"""Configuration: TOML whose keys are the flags.

    # portolan.toml, or [tool.portolan] in pyproject.toml
    backend = ["onnxruntime", "openvino"]     # every command that has the flag
    [optimize]
    goal = ["latency_p95 < 8ms", "min size"]  # `optimize` alone

The command line wins over `PORTOLAN_*`, that over the project's file, that over the user's. Each flag's value is taken
whole from the first place that names it; a command's own table wins over the top level of the same file.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portolan.errors import UnknownName, UsageError

#: Flags whose value is a path; a relative one in a file is relative to that file.
PATHS = frozenset(
    {"data", "out", "study", "recipe", "metric"} | {"token-file", "tls-cert", "tls-key", "tls-client-ca", "log-file"}
)
#: Flags that are no keys: they are about one run, and no project's file may decide that a bundle's code runs.
NO_KEYS = frozenset({"config", "help", "version", "check", "force", "native"})


@dataclass(frozen=True)
class Flag:
    """What configuration has to know of a flag: its name without dashes, and whether it can be given repeatedly."""

    name: str
    many: bool = False


@dataclass(frozen=True)
class Setting:
    """A flag's value and the place it comes from, such as `portolan.toml:3` or `PORTOLAN_BUDGET`."""

    value: Any
    where: str


Verbs = Mapping[str, Mapping[str, Flag]]


@dataclass(frozen=True)
class Source:
    """One TOML file's table of settings, with the text to find lines in."""

    path: Path
    table: Mapping[str, Any]
    text: str
    prefix: tuple[str, ...] = ()

    def where(self, *keys: str) -> str:
        """`portolan.toml:3`: the line that sets the key, or the file alone where the line is not found."""
        line = find_line(self.text, (*self.prefix, *keys))
        return _short(self.path) + (f":{line}" if line else "")


def settings(
    verb: str, verbs: Verbs, *, cwd: Path, env: Mapping[str, str], explicit: Path | None = None
) -> dict[str, Setting]:
    """The settings of every flag of `verb` that the environment or a file sets.

    Args:
        verb: the command that runs.
        verbs: every command's flags by name; what is unknown to all of them is an error.
        cwd: the project's file is looked for here and in the folders above.
        env: the environment.
        explicit: the file of `--config`, taken in the place of the project's.

    Raises:
        UsageError: a file cannot be read, or a value is not one that its flag can take.
        UnknownName: a key that is no flag.
    """
    found: dict[str, Setting] = {}
    sources = [read(explicit)] if explicit else project(cwd)
    for source in (*sources, *user(env)):
        for name, setting in _of_file(source, verb, verbs).items():
            found.setdefault(name, setting)
    return found | _of_environment(verb, verbs, env)


def project(cwd: Path) -> list[Source]:
    """The nearest `portolan.toml` or `pyproject.toml` with `[tool.portolan]`, at `cwd` or above it; at most one."""
    for folder in (cwd, *cwd.parents):
        if (path := folder / "portolan.toml").is_file():
            return [read(path)]
        path = folder / "pyproject.toml"
        if path.is_file() and "tool.portolan" in (text := _text(path)):
            table = _parse(path, text).get("tool", {}).get("portolan")
            if isinstance(table, dict):
                return [Source(path, table, text, ("tool", "portolan"))]
    return []


def user(env: Mapping[str, str]) -> list[Source]:
    """`portolan/config.toml` in the user's configuration folder, if it is there."""
    home = env.get("XDG_CONFIG_HOME") or (str(Path(env["HOME"]) / ".config") if env.get("HOME") else None)
    path = Path(home) / "portolan" / "config.toml" if home else None
    return [read(path)] if path is not None and path.is_file() else []


def read(path: Path) -> Source:
    """Reads a file; in a `pyproject.toml` the table is `[tool.portolan]`."""
    text = _text(path)
    table = _parse(path, text)
    if path.name == "pyproject.toml":
        return Source(path, table.get("tool", {}).get("portolan", {}), text, ("tool", "portolan"))
    return Source(path, table, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"the configuration file `{_short(path)}` does not exist", where="--config") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"the configuration file `{_short(path)}` cannot be read: {reason}") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = int(place[1]) if place else len(text.splitlines())
        message = str(error).split(" (at ")[0]
        raise UsageError(
            f"`{path.name}` is not TOML: {message[:1].lower()}{message[1:]}", where=f"{_short(path)}:{line}"
        ) from error


def _of_file(source: Source, verb: str, verbs: Verbs) -> dict[str, Setting]:
    """The settings for `verb`; every key of the file is checked, also those of other commands."""
    names = {name for flags in verbs.values() for name in flags}
    everything = {
        name: Flag(name, any(flags[name].many for flags in verbs.values() if name in flags)) for name in names
    }
    general: dict[str, Setting] = {}
    own: dict[str, Setting] = {}
    for key, value in source.table.items():
        if key in verbs and key not in names and not isinstance(value, dict):
            raise UsageError(
                f"`{key}` is a command, so it is a table", hint=f"write `[{key}]`", where=source.where(key)
            )
        if key in verbs and isinstance(value, dict):  # `target` is a command and a flag
            for name, inner in value.items():
                setting = _setting(source, (key, name), verbs[key], inner, verbs)
                if key == verb:
                    own[name] = setting
        else:
            setting = _setting(source, (key,), everything, value, verbs)
            if key in verbs[verb] and (fit := _fitted(setting, verbs[verb][key])) is not None:
                general[key] = fit
    return general | own


def _fitted(setting: Setting, flag: Flag) -> Setting | None:
    """A general setting as one command's flag takes it: a list says nothing to a flag that takes one value."""
    if flag.many or not isinstance(setting.value, list):
        return setting
    return Setting(setting.value[0], setting.where) if len(setting.value) == 1 else None


def _setting(source: Source, keys: tuple[str, ...], flags: Mapping[str, Flag], value: Any, verbs: Verbs) -> Setting:
    where, name = source.where(*keys), keys[-1]
    if name not in flags:
        owner = f"`{keys[0]}` has no key" if len(keys) > 1 else "there is no key"
        hint = (
            nearest(name, [*flags, *(verbs if len(keys) == 1 else ())], verbs) or f"known: {', '.join(sorted(flags))}"
        )
        raise UsageError(f"{owner} `{name}`", hint=hint, where=where)
    if isinstance(value, dict):
        raise UsageError(f"`{name}` is a flag, not a table", hint=f'write `{name} = "..."`', where=where)
    many = flags[name].many
    if isinstance(value, list):
        if not many:
            raise UsageError(f"`{name}` takes one value, not a list", where=where)
        values = [_scalar(item, name, where) for item in value]
        return Setting([_anchored(item, name, source.path) for item in values], where)
    value = _anchored(_scalar(value, name, where), name, source.path)
    return Setting([value] if many else value, where)


def nearest(name: str, known: Iterable[str], verbs: Verbs, dashes: str = "") -> str | None:
    """A hint for an unknown flag or key: the nearest one that is known, else the commands that do have it."""
    if owners := [f"`{verb}`" for verb, flags in verbs.items() if name in flags]:
        named = " and ".join(filter(None, (", ".join(owners[:-1]), owners[-1])))
        return f"{named} {'has' if len(owners) == 1 else 'have'} it"
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean `{dashes}{near[0]}`?" if near else None


def _scalar(value: Any, name: str, where: str) -> Any:
    if not isinstance(value, (str, int, float, bool)):
        raise UsageError(f"`{name}` cannot be `{value}`", hint="use text, a number or true/false", where=where)
    return value


def _anchored(value: Any, name: str, file: Path) -> Any:
    """A relative path, made relative to the file that names it."""
    if name not in PATHS or not isinstance(value, str) or re.match(r"\w+:\w", value):
        return value
    return str(file.absolute().parent / Path(value).expanduser())


def _of_environment(verb: str, verbs: Verbs, env: Mapping[str, str]) -> dict[str, Setting]:
    names = {_variable(name): (name, flag) for name, flag in verbs[verb].items()}
    own = {_variable(verb, name): (name, flag) for name, flag in verbs[verb].items()}
    known = {_variable(name) for flags in verbs.values() for name in flags}
    known |= {_variable(v, name) for v, flags in verbs.items() for name in flags}
    found: dict[str, Setting] = {}
    for table in (names, own):
        for variable, (name, flag) in table.items():
            if text := env.get(variable):
                found[name] = Setting(split(text) if flag.many else text, variable)
    for variable in env:
        # Variables of plug-ins share the prefix, so only what looks like a slip is an error.
        slip = variable.startswith("PORTOLAN_") and variable not in known
        if slip and difflib.get_close_matches(variable[9:], [k[9:] for k in known], n=1, cutoff=0.8):
            raise UnknownName("setting", variable, known, where="the environment")
    return found


def _variable(*parts: str) -> str:
    return "_".join(("portolan", *parts)).upper().replace("-", "_")


def find_line(text: str, keys: tuple[str, ...]) -> int | None:
    """The line (from 1) of `text` that sets the dotted key `keys`, or that opens it as a table."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            table = _dotted(header[1])
            if table[: len(keys)] == keys:
                return number
        elif (pair := re.match(r"\s*([\w\-.\"' ]+?)\s*=", line)) and (*table, *_dotted(pair[1]))[: len(keys)] == keys:
            return number
    return None


def _dotted(text: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def split(text: str) -> list[str]:
    """Splits at commas that lie in no bracket: `a, b(c=1, d=2)` is two items. Empty items vanish."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _short(path: Path) -> str:
    """The path as people write it: relative to here, or to their home."""
    path = path.absolute()
    here, home = Path.cwd(), Path(os.environ.get("HOME") or "/nowhere")
    if path.is_relative_to(here):
        return str(path.relative_to(here))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
