"""The documentation is executed: what the README shows is what happens."""

from __future__ import annotations

import ast
import functools
import re
import shutil
from graphlib import TopologicalSorter

import pytest

from conftest import EXAMPLE, ROOT, write_texts
from klscale.limits import LIMITS
from klscale.science.estimates import format_estimate
from klscale.studies import scales
from klscale.vectors.imports import read_log_likelihoods

SOURCE = ROOT / "src" / "klscale"
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCALE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with what the README's commands name."""
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "examples")
    write_texts(tmp_path / "my-texts.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def console_blocks(document=README):
    for block in re.findall(r"```console\n(.*?)```", document, re.DOTALL):
        if block.startswith("$"):
            yield from re.findall(r"^\$ (klscale [^\n#]*)[^\n]*\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


def output_of(run, command):
    return "\n".join(line.rstrip() for line in run(*command.split()[1:]).stdout.splitlines()) + "\n"


@pytest.mark.slow
def test_commands_and_their_output(run, place, make_model):
    """Those that need no network are run; where output is shown, it is that."""
    for name in ("runs/a/checkpoint-500", "runs/b/checkpoint-500"):
        make_model(name, seed=len(name) + ord(name[5]))
    ran = []
    for command, shown in console_blocks():
        if "EleutherAI" in command and not shown:
            continue  # from the hub
        if "import" in command:
            shutil.rmtree(place / "klscale-store", ignore_errors=True)
        output = output_of(run, command)
        assert not shown or output == shown
        ran.append(command)
    assert len(ran) == 4


ROOMS = {
    "errors": "",
    "progress": "",
    "limits": "errors",
    "display": "",
    "science": "errors limits progress",
    "inputs": "science errors limits progress",
    "vectors": "inputs science errors limits progress",
    "sources": "vectors inputs science errors limits progress",
    "store": "vectors inputs science errors limits progress",
    "sweep": "store sources vectors inputs science errors limits progress",
    "studies": "sweep store sources vectors inputs science errors limits progress display",
    "show": "studies sweep store vectors inputs science errors limits progress display",
    "training": "studies sweep store sources vectors inputs science errors limits progress display",
    "cli": "show studies sweep store sources vectors inputs science errors limits progress display",
}
"""What each room may import, types and imports inside functions included."""
ALONE = {"errors", "progress", "limits", "display"}
"""Files beside the rooms."""


def test_rooms_import_downwards_only():
    allowed = {room: {room, *below.split()} for room, below in ROOMS.items()}
    files = [file for file in SOURCE.rglob("*.py") if len(file.relative_to(SOURCE).parts) > 1]
    assert {file.relative_to(SOURCE).parts[0] for file in files} == {*ROOMS} - ALONE
    for file in files:
        room = file.relative_to(SOURCE).parts[0]
        used = {name.split(".")[1] for name in imported(file)}
        assert used <= allowed[room], (file.relative_to(SOURCE), used - allowed[room])


def test_only_sources_know_which_sources_there_are():
    """Above them a model is pinned and opened by `Sources`; one that is being trained is in no source's reach."""
    for file in SOURCE.rglob("*.py"):
        place = file.relative_to(SOURCE)
        if place.parts[0] != "sources" and place.as_posix() != "training/live.py":
            names = [name for name in imported(file) if ".sources." in name]
            shared = ("klscale.sources.source.", "klscale.sources.tokens.", "klscale.sources.quiet.")
            assert all(name.startswith(shared) for name in names), (place, names)


def test_the_rooms_are_as_documented():
    """docs/how-it-works.md lists them in the order of their imports."""
    shown = re.findall(
        r"^\| `(\w+)/` \|", (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert {*shown} == {*ROOMS} - ALONE
    for place, room in enumerate(shown):
        assert not {*ROOMS[room].split()} & {*shown[:place]}, room


def test_no_module_imports_one_that_imports_it():
    files = {
        ".".join(("klscale", *file.relative_to(SOURCE).with_suffix("").parts)): file for file in SOURCE.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): file for name, file in files.items()}
    imports = {name: {*imported(file, known=files)} - {name} for name, file in files.items()}
    TopologicalSorter(imports).prepare()  # raises CycleError


@functools.cache
def import_statements(file):
    """Every `from klscale... import ...` of a module, and whether it is for types alone."""
    nodes = [*ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    tests = [node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    of_types = {id(node) for test in tests for child in test.body for node in ast.walk(child)}
    found = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("klscale")]
    return [(node, id(node) in of_types) for node in found]


def imported(file, known=None):
    """Modules of the package that a module imports; with those `known`, each in full, and not those of types alone."""
    for node, of_types in import_statements(file):
        if not (known and of_types):
            for name in node.names:
                full = f"{node.module}.{name.name}"
                if known:
                    yield full if full in known else node.module
                else:
                    yield full


def test_the_scale_is_as_shown(run, place):
    """What docs/scale.md shows is printed; what it says in words is what the code gives."""
    *_, (imported, _), (command, shown) = console_blocks(SCALE)
    output_of(run, imported)
    assert output_of(run, command) == shown
    vectors = read_log_likelihoods(EXAMPLE, id_column="text_id")
    measured = {row.setting: row for row in scales.measure(vectors)}
    named = re.findall(r"(\d\.\d+ ± \d\.\d+)", SCALE[SCALE.index("**Architecture moves") : SCALE.index("| pair |")])
    assert named == [
        format_estimate(measured[name].median, measured[name].standard_error) for name in ("architecture", "size")
    ]
    one, other = (measured[name].interval for name in ("architecture", "size"))
    assert max(one[0], other[0]) < min(one[1], other[1]), "the intervals overlap"
    rows = re.findall(r"^\| 410M, (\S+) \| (\S+ ± \S+) \| (\S+ ± \S+) \| (\S+) \|$", SCALE, re.MULTILINE)
    assert len(rows) == 3
    published = {row.compared: row for row in scales.published_pairs()}
    for size, here, there, ratio in rows:
        kl = vectors.kl()["EleutherAI/pythia-410m", f"EleutherAI/pythia-{size.lower()}"]
        known = published[f"Pythia 410M to {size}"]
        assert (here, there) == (str(kl).removesuffix(" bits/byte"), f"{known.kl:#.2g} ± {known.standard_error:#.2g}")
        assert ratio == f"{known.kl / kl.value:.1f}"
    assert f"measure {rows[0][3]} to {rows[2][3]} times less" in SCALE


def test_the_published_scale_is_as_documented():
    for row in scales.published():
        line = next(line for line in SCALE.splitlines() if line.startswith("| `") and row.setting.split()[0] in line)
        assert f"{row.median:#.2g}" in line


def test_python_blocks_run(place, make_model, capsys):
    for name in ("runs/a/checkpoint-500", "runs/b/checkpoint-500"):
        make_model(name, seed=ord(name[5]))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {})
        shown = capsys.readouterr().out
        for promised in re.findall(r"^print.*# (.*bits/byte)$", block, re.MULTILINE):
            assert promised in shown


def test_every_command_is_in_the_readme():
    from klscale.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"`klscale ([\w-]+)", README)) | {"rm", "check", "doctor"}
    assert names <= named
    assert all(f"`{name}`" in README for name in ("rm", "check", "doctor"))


def test_links_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")):
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?://)([^)#\s]+)\)|<img src=\"([^\"]+)\"", text):
            assert (document.parent / (target[0] or target[1])).exists(), (document.name, target)


def test_no_word_is_taken_for_a_tag():
    """`<s>` outside code strikes the rest of a page out."""
    for document in (*(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md"), ROOT / "CHANGELOG.md"):
        text = re.sub(r"```.*?```|`[^`]*`|<!--.*?-->", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"(?<!\\)</?[a-zA-Z][^>]*>", text), document


def test_the_security_page_lists_every_limit():
    """Each with its default, in the order of `limits.py`."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", page, re.MULTILINE)
    names = [name for cell, _ in rows for name in re.findall(r"`(\w+)`", cell)]
    defaults = [default for _, cell in rows for default in cell.split("; ")]
    units = {"GiB": 2**30, "MB": 10**6}
    given = []
    for default in defaults:
        number, _, unit = default.partition(" ")
        given.append(int(number.replace(",", "")) * units.get(unit, 1))
    assert [*zip(names, given, strict=True)] == [(limit.name, limit.default) for limit in LIMITS]
