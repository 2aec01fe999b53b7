"""Writes docs/reference/ from the code itself: `python tools/make_reference.py [--check]`.

Everything in those pages is read from where it is decided: commands from click, options of backends and passes from
their signatures, metrics and units from their tables, errors from their classes, JSON objects from the shapes that the
contract tests check. A test fails when a page is out of date; bundle-format.md is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from portolan import errors, units
from portolan.cli.app import VERBS, app
from portolan.cli.config import NO_KEYS, PATHS
from portolan.cli.options import Whole
from portolan.core import conformance
from portolan.core import environments as plans
from portolan.core.measurement import METRICS
from portolan.core.registry import BACKENDS, FRONTENDS, PASSES, Registry
from portolan.core.schema import Parameter, Schema

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "reference"
EXCEPTIONS = ROOT / "tests" / "conformance"
SHAPES = ROOT / "tests" / "contract" / "json_shapes.py"
_ON_GPUS = "never run on a GPU by us yet: `make test-gpu` where one is; [the guide](../guides/gpus.md)"
NOTE = "<!-- Written by tools/make_reference.py: change the code, then run it. -->\n\n"


def pages() -> dict[str, str]:
    """Every page by file name."""
    made = {
        "commands.md": commands(),
        "configuration-keys.md": configuration(),
        "backends.md": backends(),
        "operators.md": operators(),
        "passes.md": passes(),
        "front-ends.md": frontends(),
        "environments.md": environments(),
        "metrics-and-goals.md": metrics(),
        "errors.md": failures(),
        "json.md": shapes(),
    }
    return {name: NOTE + text.rstrip() + "\n" for name, text in made.items()}


# --- commands and configuration


def commands() -> str:
    """Every command with its arguments and flags."""
    parts = [
        "# Commands\n",
        "Flags that every command has stand at the end. Values: [configuration](configuration-keys.md).\n",
    ]
    context = click.Context(app, **app.context_settings)
    every = {name: _command(context, name) for name in VERBS}
    shared = set.intersection(*({_names(o) for o in _options(c)} for c in every.values()))
    for name, command in every.items():
        synopsis = " ".join(command.collect_usage_pieces(click.Context(command, info_name=name, parent=context)))
        parts.append(f"## {name}\n\n    portolan {name} {synopsis}\n")
        parts += [_paragraph(text) + "\n" for text in inspect.cleandoc(command.help or "").split("\n\n")]
        own = [o for o in _options(command) if _names(o) not in shared]
        if own:
            parts.append(_table(("flag", "meaning"), [(_flag(o), o.help or "") for o in own]))
    common = [o for o in _options(every["optimize"]) if _names(o) in shared]
    parts.append("## Every command\n\n" + _table(("flag", "meaning"), [(_flag(o), o.help or "") for o in common]))
    parts.append("`portolan --version` prints the version; `-h` or `--help` stands behind any command.")
    return "\n".join(parts)


def _command(context: click.Context, name: str) -> click.Command:
    found = app.get_command(context, name)
    if found is None:
        raise LookupError(name)
    return found


def _paragraph(text: str) -> str:
    """A paragraph of a help text; one that click is told to leave as it is becomes code."""
    if not text.startswith("\b\n"):
        return text
    return "\n".join(f"    {line}" for line in text.removeprefix("\b\n").splitlines())


def _options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option)]


def _names(option: click.Option) -> str:
    return ", ".join(option.opts)


def _flag(option: click.Option) -> str:
    value = "" if option.is_flag or option.count else f" {option.metavar or option.type.name.upper()}"
    return f"`{_names(option)}{value}`"


def configuration() -> str:
    """Every key of a configuration file."""
    context = click.Context(app, **app.context_settings)
    found: dict[str, dict[str, Any]] = {}
    for verb in VERBS:
        for param in _command(context, verb).params:
            name = max(param.opts, key=len).lstrip("-")
            if name in NO_KEYS or not (isinstance(param, click.Option) or name == "target"):
                continue
            entry = found.setdefault(name, {"verbs": [], "param": param})
            entry["verbs"].append(verb)
    rows = []
    for name, entry in sorted(found.items()):
        param = entry["param"]
        form = _form(param)
        form = f"{form}, or a list" if param.multiple else form
        form += ", relative to the file" if name in PATHS else ""
        verbs = "every command" if len(entry["verbs"]) == len(VERBS) else ", ".join(f"`{v}`" for v in entry["verbs"])
        rows.append((f"`{name}`", f"`PORTOLAN_{name.upper().replace('-', '_')}`", form, verbs))
    return "\n".join(
        [
            "# Configuration keys\n",
            "The keys are the flags. [The guide](../guides/configuration.md) says where they are read, and what wins.",
            "`PORTOLAN_OPTIMIZE_GOAL` sets a key for one command, as a table `[optimize]` does in a file.\n",
            _table(("key", "environment", "value", "commands that have it"), rows),
            "No keys, because they are about one run: " + ", ".join(f"`{name}`" for name in sorted(NO_KEYS)) + ".",
        ]
    )


def _form(param: click.Parameter) -> str:
    if getattr(param, "is_flag", False):
        return "true or false"
    return "number" if getattr(param, "count", False) or isinstance(param.type, Whole) else "text"


# --- plug-ins


def backends() -> str:
    """Every built-in backend with its options."""
    parts = [
        "# Backends\n",
        "What this machine can run: `portolan doctor`. How to add one: [the guide](../guides/add-a-backend.md).\n",
    ]
    for name in _own(BACKENDS):
        backend = BACKENDS.get(name)
        parts.append(f"## {name}\n\n{_about(type(backend))}\n")
        exploits = [f"`{e.feature}`" + _only(e.needs) for e in backend.exploits]
        facts = [
            ("installed by", f"`{backend.fix}`"),
            ("versions recorded of", ", ".join(f"`{d}`" for d in backend.distributions)),
            ("starts from", "the exported torch program" if backend.needs_program else "the ONNX graph"),
            ("exploits", "; ".join(exploits) or "no feature that a pass produces"),
            ("searched", "yes" if backend.searched else "only when `--backend` names it"),
            *([("on GPUs", _ON_GPUS)] if "device" in backend.schema.parameters else []),
        ]
        parts += [_table(("", ""), facts), _schema(backend.schema)]
    return "\n".join(parts)


def operators() -> str:
    """What ONNX's node tests found: totals, the matrix of operators and backends, and every exception's cause."""
    data = json.loads(conformance.data())
    table = conformance.table()
    parts = [
        "# Operators\n",
        f"{data['cases']:,} node tests of `onnx` {data['onnx']}, of which ONNX Runtime by itself passes "
        f"{data['counted']:,}: those count here. Written by `python tools/conformance.py --update`. A backend in "
        "the versions below refuses models with an operator that it says it has not.\n",
    ]
    rows = [
        (f"`{name}`", _listed(m.versions), _listed(m.options), *map(str, vars(m.total).values()),
         f"{m.total.passed / max(m.total.cases, 1):.1%}")
        for name, m in table.items()
    ]  # fmt: skip
    parts.append(_table(("backend", "versions", "options", "pass", "wrong or crashed", "refused", "share"), rows))
    about = (
        "Cases passed of cases, where an operator has cases of its own; `-`: the backend says that it has no such "
        "operator. Where none passed and there is no `-`, something else was refused: an element type, sizes that are "
        "inputs, an old operator set."
    )
    parts.append(f"## Matrix\n\n{about}\n")
    names = sorted({operator for m in table.values() for operator in m.operators})
    cells = [(f"`{o}`", *(_passed(m, o) for m in table.values())) for o in names]
    parts.append(_table(("operator", *(f"`{name}`" for name in table)), cells))
    for name in table:
        kept = json.loads((EXCEPTIONS / f"{name}.json").read_text(encoding="utf-8"))
        listed = [(str(len(cases)), cause, ", ".join(sorted(cases))) for cause, cases in kept["exceptions"].items()]
        text = _table(("cases", "cause, in the backend's words", "which"), listed) if listed else "None.\n"
        parts.append(f"## Exceptions of {name}\n\n{text}")
    return "\n".join(parts)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _passed(measured: conformance.Measured, operator: str) -> str:
    counts = measured.operators.get(operator)
    if counts is None:
        return ""
    return "-" if operator in measured.lacking else f"{counts.passed}/{counts.cases}"


def passes() -> str:
    """Every built-in pass with its options."""
    parts = [
        "# Passes\n",
        "In a chain they run in the order given. How to add one: [the guide](../guides/add-a-pass.md).\n",
    ]
    for name in _own(PASSES):
        found = PASSES.get(name)
        parts.append(f"## {name}\n\n{found.about}\n")
        rows = [
            (
                f"`{name}({inner})`" if inner else f"`{name}`",
                found.needs(o),
                _features(found.produces(o)),
                _yes(found.lossy(o)),
            )
            for inner, o in _variants(found.schema)
        ]
        parts += [_table(("with", "needs", "produces", "outputs change"), rows), _schema(found.schema)]
    return "\n".join(parts)


def frontends() -> str:
    """Every built-in front end."""
    names = _own(FRONTENDS)
    rows = []
    for name in names:
        found = FRONTENDS.get(name)
        packages = ", ".join(f"`{d}`" for d in found.distributions) or "-"
        rows.append((name, found.forms, packages, _about(type(found)).split("\n")[0]))
    return "# Front ends\n\n" + _table(("name", "reads", "needs", ""), rows)


def environments() -> str:
    """Every environment that `portolan env add` makes, with its packages and their licences."""
    parts = [
        "# Environments\n",
        "What `portolan env add NAME` installs: these packages in these versions and no others.",
        "[The guide](../guides/another-interpreter.md) says how they are used.\n",
    ]
    for name in plans.names():
        plan = plans.plan(name)
        rows = [(f"`{pin.name}`", pin.version, pin.licence) for pin in plan.pins]
        parts += [f"## {name}\n\n{plan.about}\n", _table(("package", "version", "licence"), rows)]
    return "\n".join(parts)


def _own(registry: Registry) -> list[str]:
    """The built-in names: plug-ins that are installed here are documented by their authors."""
    return sorted(registry.built_in)


def _about(thing: type) -> str:
    return inspect.cleandoc(thing.__doc__ or "").split("\n\n")[0].replace("\n", " ")


def _only(needs: tuple[str, ...]) -> str:
    return f" (with one of {', '.join(f'`{n}`' for n in needs)})" if needs else ""


def _features(features: tuple[str, ...]) -> str:
    return ", ".join(f"`{f}`" for f in features) or "-"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _variants(schema: Schema) -> Iterator[tuple[str, dict[str, Any]]]:
    """The option sets that a search tells apart, with what is not a default of them as text."""
    defaults = schema.check({})
    yield "", defaults
    for name, parameter in schema.parameters.items():
        for value in parameter.choices if parameter.knob.search else ():
            if value != parameter.default:
                yield f"{name}={_text(value)}", {**defaults, name: value}


def _schema(schema: Schema) -> str:
    if not schema.parameters:
        return "It has no options.\n"
    rows = [
        (f"`{p.name}`", _type(p), f"`{_text(p.default)}`", _tried(p), _sentence(p.knob.help))
        for p in schema.parameters.values()
    ]
    return _table(("option", "values", "default", "a search tries", "meaning"), rows)


def _type(parameter: Parameter) -> str:
    if parameter.choices:
        return ", ".join(f"`{_text(c)}`" + _only(parameter.knob.needs.get(c, ())) for c in parameter.choices)
    kinds = typing.get_args(parameter.type) or (parameter.type,)
    words = {int: "whole number", float: "number", str: "text", type(None): "none"}
    return " or ".join(words.get(kind, str(kind)) for kind in kinds)


def _tried(parameter: Parameter) -> str:
    if not parameter.knob.search:
        return "the default"
    if callable(parameter.knob.values):
        about = {"cores": "all cores, half of them, one"}
        return about.get(parameter.knob.values.__name__, f"its {parameter.knob.values.__name__}")
    listed = parameter.knob.values or parameter.choices
    return ", ".join(f"`{_text(v)}`" for v in listed) if len(listed) > 1 else "the default"


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# --- metrics, errors, objects


def metrics() -> str:
    """The metrics, the goal grammar and the units."""
    from portolan.study.wanted import UNMEASURED

    rows = [
        (f"`{m.name}`", m.about, m.unit or "-", m.better, _yes(m.quality), _yes(m.name not in UNMEASURED))
        for m in METRICS.values()
    ]
    dimensions = {
        m.dimension: [n.name for n in METRICS.values() if n.dimension == m.dimension] for m in METRICS.values()
    }
    scales = [
        (name, ", ".join(f"`{unit}`" for unit in units._SCALES[name]), ", ".join(f"`{n}`" for n in names))
        for name, names in dimensions.items()
    ]
    return "\n".join(
        [
            "# Metrics and goals\n",
            "## The grammar\n",
            "    LIMIT      METRIC (< | <= | > | >=) NUMBER UNIT      latency_p95 < 8ms",
            "    OBJECTIVE  (min | max) METRIC                        min size",
            "    LOAD       a latency's limit or objective at NUMBER qps   latency_p99 < 50ms at 200 qps\n",
            "`≤` and `≥` are read too. A share (accuracy, cosine, an error) is a number or a percentage: `0.01`, `1%`.",
            "A latency under load counts from the moment its call was due. Its key in JSON is `latency_p99@200qps`.",
            "What goals mean: [the guide](../guides/goals.md).\n",
            "## Metrics\n",
            _table(("metric", "what it is", "unit in JSON", "better", "quality", "measured today"), rows),
            "A limit on any quality metric allows outputs to change. In JSON a `share` is 0 to 1.\n",
            "## Units\n",
            _table(("dimension", "units", "metrics"), scales),
        ]
    )


def failures() -> str:
    """The errors with their exit codes."""
    rows = [
        (f"`{'  ' * depth}{c.__name__}`".replace("  ", "· "), str(c.exit_code), _about(c)) for c, depth in _errors()
    ]
    codes = {
        0: "done, and goals met",
        1: "a bug, or a worker that failed where one was all there was",
        2: "usage: a flag, a goal, a file or data that does not fit",
        3: "goals not met; the closest result is saved and named",
        4: "no backend or target can do it",
        5: "the model cannot be read, or an operator is unsupported",
        6: "verification failed",
        7: "no valid result in the budget",
        130: "interrupted; what was done is saved, repeat the command to go on",
    }
    known = {c.exit_code for c, _ in _errors()} | {0}
    if known != set(codes):
        raise LookupError(f"exit codes {sorted(known)} are not those described here")
    return "\n".join(
        [
            "# Errors and exit codes\n",
            _table(("exit code", "meaning"), [(str(code), text) for code, text in codes.items()]),
            'With `--json` a failure prints `{"error": {"code", "message", "where", "hint"}}` on stdout.',
            "In Python: an exception of `portolan.errors` with `.message`, `.hint`, `.where` and `.exit_code`.\n",
            _table(("class", "exit code", "meaning"), rows),
        ]
    )


def _errors(base: type[errors.PortolanError] = errors.PortolanError, depth: int = 0) -> Iterator[tuple[Any, int]]:
    yield base, depth
    for child in vars(errors).values():
        if inspect.isclass(child) and child.__bases__ == (base,):
            yield from _errors(child, depth + 1)


def shapes() -> str:
    """The objects that `--json` prints, from the functions that the contract tests check them with."""
    tree = ast.parse(SHAPES.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    titles = {"metric": "METRIC", "recipe": "RECIPE", "trial": "TRIAL"}
    verbs: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "BY_VERB":
            value = typing.cast(ast.Dict, node.value)
            verbs = {
                typing.cast(ast.Constant, k).value: typing.cast(ast.Name, v).id
                for k, v in zip(value.keys, value.values, strict=True)
            }
    parts = [
        "# JSON objects\n",
        "`--json` prints exactly one object on stdout. These keys are stable; more may be there. `null` stands where a",
        "number has no meaning, as for the interval of one reading. A share is 0 to 1, times are in ms.\n",
    ]
    for function, title in titles.items():
        parts += [f"## {title}\n", _object(functions[function])]
    for verb, function in verbs.items():
        parts += [f"## {verb}\n", _object(functions[function])]
    parts += ["## Any failure\n", _object(functions["failure"])]
    return "\n".join(parts)


_KINDS = {
    "str": "text", "int": "whole number", "bool": "true or false", "list": "list", "Mapping": "object",
    "NUMBER": "number", "OPTIONAL_NUMBER": "number or null", "TEXT_OR_NONE": "text or null", "object": "any",
    "METRIC_OR_NONE": "METRIC or null",
}  # fmt: skip


def _object(function: ast.FunctionDef) -> str:
    rows = []
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_want":
            where, fields = node.args[1], node.args[2]
            if isinstance(fields, ast.Name):  # named in the function
                fields = _assigned(function, fields.id)[0]
            for key, kind in zip(typing.cast(ast.Dict, fields).keys, typing.cast(ast.Dict, fields).values, strict=True):
                name = f"{_path(where, function)}{typing.cast(ast.Constant, key).value}"
                rows.append((node.lineno, name, _kind(kind)))
    return _table(("key", "value"), [(f"`{name}`", kind) for _, name, kind in sorted(rows, key=lambda r: r[0])])


def _assigned(function: ast.FunctionDef, name: str) -> list[ast.expr]:
    assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    return [node.value for node in assignments if getattr(node.targets[0], "id", "") == name]


def _path(node: ast.expr, function: ast.FunctionDef) -> str:
    """`$.inputs[0]` as `inputs[].`, whatever variables it is made of."""
    if isinstance(node, ast.Name):
        given = _assigned(function, node.id)
        return _path(given[0], function) if given else ""
    pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
    text = ""
    for piece in pieces:
        if isinstance(piece, ast.Constant):
            text += str(piece.value)
        elif isinstance(piece, ast.FormattedValue) and isinstance(piece.value, ast.Name):
            text += {"i": "", "path": "$", "side": "inputs|outputs"}[piece.value.id]
    text = text.removeprefix("$").removeprefix(".")
    return f"{text}." if text else ""


def _kind(node: ast.expr) -> str:
    if isinstance(node, ast.Tuple):
        names = [_kind(item) for item in node.elts]
        return " or ".join(dict.fromkeys(names))
    if isinstance(node, ast.Call):  # type(None)
        return "null"
    return _KINDS[typing.cast(ast.Name, node).id]


# --- text


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)]) + "\n"


def outdated(folder: Path = FOLDER, made: Mapping[str, str] | None = None) -> list[str]:
    """The pages that are not as the code says."""
    found = []
    for name, text in (pages() if made is None else made).items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            found.append(name)
    return found


def main() -> int:
    """Writes the pages, or with `--check` says which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    wrong = outdated()
    if parser.parse_args().check:
        print("\n".join(f"out of date: {name}" for name in wrong) or "up to date")
        return 1 if wrong else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(pages())} pages, {len(wrong)} of them changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
