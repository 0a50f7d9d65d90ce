"""Write docs/reference/ from docstrings and from the help of the commands: `python docs/make_reference.py`.

tests/test_reference.py compares the pages with what this makes, and refuses an exported name without a docstring.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

import klscale
from klscale.cli import COMMANDS, TEXTS_COMMANDS
from klscale.cli.options import with_options
from klscale.progress import Progress
from klscale.studies.verbs.options import Options

PAGES = Path(__file__).parent / "reference"
VERBS = ("score", "compare", "layers", "trajectory", "scale", "validate", "map", "report", "demo")
"""In the order of their use; the other functions follow by name."""


# ------------------------------------------------------------------------------------------------------------- Python


def exports() -> dict[str, Any]:
    """Every exported class and function, by name."""
    return {name: getattr(klscale, name) for name in klscale.__all__ if name != "__version__"}


def members(exported: type) -> Iterator[tuple[str, Any, Any]]:
    """The public methods and properties of a class: name, what it is, and its function. What another package's class
    defines is that package's."""
    foreign = [base for base in exported.__mro__[1:] if not base.__module__.startswith("klscale")]
    own = [base for base in reversed(exported.__mro__) if base.__module__.startswith("klscale")]
    for name, member in {name: member for base in own for name, member in vars(base).items()}.items():
        function = getattr(member, "__func__", None) or getattr(member, "fget", None) or getattr(member, "func", member)
        if not name.startswith("_") and inspect.isfunction(function) and not any(hasattr(b, name) for b in foreign):
            yield name, member, function


def field_texts(exported: type) -> dict[str, str]:
    """What is said of each field of a dataclass, as its help or in the string below it."""
    if not is_dataclass(exported):
        return {}
    said: dict[str, str] = {}
    for base in reversed(exported.__mro__):
        if base.__module__.startswith("klscale"):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for entry, below in pairwise(getattr(tree, "body", ())):
                match entry, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        said[name] = " ".join(text.split())
    found = {entry.name: entry.metadata.get("help", said.get(entry.name)) for entry in fields(exported)}
    return {name: text for name, text in found.items() if text}


def docstring(documented: Any) -> str:
    """Its own, not one that it inherits."""
    return inspect.cleandoc(documented.__doc__ or "")


def signature(name: str, function: Any) -> str:
    """How it is called, with types and defaults; on lines of their own where one is too long."""
    found = inspect.signature(function)
    parts, marked = [], False
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            parts.append("*")
            marked = True
        if parameter.kind is parameter.VAR_POSITIONAL:
            marked = True
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        kind = "" if parameter.annotation is parameter.empty else f": {_type(parameter.annotation)}"
        default = "" if parameter.default is parameter.empty else f" = {_default(parameter.default)}"
        parts.append(f"{stars}{parameter.name}{kind}{default if kind else default.replace(' ', '')}")
    result = found.return_annotation
    gives = "" if result in (found.empty, None, "None") or inspect.isclass(function) else f" -> {_type(result)}"
    line = f"{name}({', '.join(parts)}){gives}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){gives}"


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _default(value: Any) -> str:
    if isinstance(value, Progress | Options):
        return f"{type(value).__name__}()"
    return repr(value) if not type(value).__name__.startswith("_") else "..."


def python_page() -> str:
    found = exports()
    functions = {name: value for name, value in found.items() if not inspect.isclass(value)}
    classes = {name: value for name, value in found.items() if inspect.isclass(value)}
    groups = {
        "Verbs": {name: functions[name] for name in VERBS},
        "Functions": {name: value for name, value in functions.items() if name not in VERBS},
        "Classes": {name: value for name, value in classes.items() if not issubclass(value, Exception)},
        "Errors": {name: value for name, value in classes.items() if issubclass(value, Exception)},
    }
    parts = [
        "# Python",
        "Every name that `klscale` exports, from its docstring. The verbs are the commands': they read or score what\n"
        "they need, print nothing, and return one result that shows itself. Made by `make reference`.",
    ]
    for title, members_ in groups.items():
        links = ", ".join(f"[`{name}`](#klscale{name.lower()})" for name in members_)
        parts += [f"## {title}", links]
        for name, value in members_.items():
            parts += [f"### `klscale.{name}`", _code(signature(f"klscale.{name}", value)), _text(docstring(value))]
            if inspect.isclass(value):
                parts += _class(value)
    return "\n\n".join(parts) + "\n"


def _class(exported: type) -> Iterator[str]:
    if described := field_texts(exported):
        yield "\n".join(f"- `{name}`: {_plain(text)}" for name, text in described.items())
    for name, member, function in members(exported):
        shown = f"`.{name}`" if isinstance(member, property | cached_property) else f"`.{signature(name, function)}`"
        shown = " ".join(shown.split()).replace("( ", "(").replace(", )", ")")
        yield f"**{shown}** {_text(docstring(function))}"


def _code(code: str) -> str:
    return f"```python\n{code}\n```"


def _text(text: str) -> str:
    """A docstring as Markdown: what is indented is code."""
    blocks = text.split("\n\n")
    return "\n\n".join(
        _code(inspect.cleandoc("\n" + block)) if block.startswith("    ") else block for block in blocks if block
    )


# ------------------------------------------------------------------------------------------------------- command line


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command: how it is written, its help, and its default."""

    call: str
    help: str
    is_option: bool
    required: bool

    @classmethod
    def of(cls, parameter: inspect.Parameter) -> Parameter:
        kind, info = get_args(parameter.annotation)
        is_option = isinstance(info, typer.models.OptionInfo)
        required = parameter.default is parameter.empty or parameter.default is ...
        name = info.metavar or _value(kind)
        if is_option:
            given = (info.default,) if isinstance(info.default, str) else info.param_decls  # typer reads either
            options = ", ".join(given or (f"--{parameter.name.replace('_', '-')}",))
            name = options if kind is bool else f"{options} {name}"
        parts = [info.help.rstrip(".") + "."]
        if info.min is not None:
            parts.append(f"At least {info.min:g}." if info.max is None else f"From {info.min:g} to {info.max:g}.")
        if not required and kind is not bool and parameter.default is not None:
            parts.append(f"Default: `{parameter.default}`.")
        if info.envvar:
            parts.append(f"Environment: `{info.envvar}`.")
        return cls(name, " ".join(parts), is_option, required)


def _value(kind: Any) -> str:
    """What an option takes, where it does not say so itself."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    for known, name in ((int, "NUMBER"), (float, "NUMBER"), (Path, "FILE")):
        if kind is known or known in get_args(kind):
            return name
    return "TEXT"


def commands() -> dict[str, tuple[str, list[Parameter]]]:
    """Every command by the words that call it: its help, and its parameters, arguments first."""
    named = {f"klscale {name}": command for name, command in COMMANDS.items()}
    named |= {f"klscale texts {name}": command for name, command in TEXTS_COMMANDS.items()}
    found = {}
    for words, command in named.items():
        parameters = [Parameter.of(one) for one in inspect.signature(with_options(command)).parameters.values()]
        found[words] = " ".join((command.__doc__ or "").split()), sorted(parameters, key=lambda one: one.is_option)
    return found


def command_page() -> str:
    parts = [
        "# Command line",
        "Every command with its arguments and options, as `--help` says it. Exit status: 0; 1 where something failed\n"
        "(the rest is kept); 2 for wrong arguments; 3 and 4 where a gate is not passed or not decided;\n"
        "130 after Ctrl-C. Made by `make reference`.",
    ]
    for words, (help_, parameters) in commands().items():
        arguments = [one.call if one.required else f"[{one.call}]" for one in parameters if not one.is_option]
        rows = [f"| `{_escaped(one.call)}` | {_plain(_escaped(one.help))} |" for one in parameters]
        table = "\n".join(["| argument or option | |", "|---|---|", *rows])
        parts += [f"## `{words}`", help_, f"```\n{' '.join([words, *arguments, '[OPTIONS]'])}\n```", table]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """A help text in which no word is taken for a tag of HTML."""
    return text.replace("<", "\\<")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def pages() -> dict[str, str]:
    """The text of each page, by its name."""
    return {"python.md": python_page(), "commands.md": command_page()}


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for page, text in pages().items():
        (PAGES / page).write_text(text, encoding="utf-8")
        print(PAGES / page)
