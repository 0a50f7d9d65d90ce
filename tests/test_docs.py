"""The documentation is executed: what the README shows is what happens."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from conftest import EXAMPLE, ROOT, write_texts

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with what the README's commands name."""
    (tmp_path / "examples").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "examples")
    write_texts(tmp_path / "my-texts.jsonl")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def console_blocks():
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        if block.startswith("$"):
            yield from re.findall(r"^\$ (klscale [^\n#]*)[^\n]*\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)


def run(command):
    result = subprocess.run(
        [sys.executable, "-m", *command.split()], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert result.returncode == 0, result.stderr
    return "\n".join(line.rstrip() for line in result.stdout.splitlines()) + "\n"


def test_commands_and_their_output(place, make_model):
    """Those that need no network are run; where output is shown, it is that."""
    for name in ("runs/a/checkpoint-500", "runs/b/checkpoint-500"):
        make_model(name, seed=len(name) + ord(name[5]))
    ran = []
    for command, shown in console_blocks():
        if "EleutherAI" in command and not shown:
            continue  # from the hub
        if "import" in command:
            shutil.rmtree(place / "klscale-store", ignore_errors=True)
        output = run(command)
        assert not shown or output == shown
        ran.append(command)
    assert len(ran) == 4


def test_python_blocks_run(place, make_model):
    for name in ("runs/a/checkpoint-500", "runs/b/checkpoint-500"):
        make_model(name, seed=ord(name[5]))
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        result = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        for promised in re.findall(r"^print.*# (.*bits/byte)$", block, re.MULTILINE):
            assert promised in result.stdout


def test_every_command_is_in_the_readme():
    from klscale.cli import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    named = set(re.findall(r"`klscale (\w+)", README)) | {"rm", "check"}
    assert names <= named
    assert all(f"`{name}`" in README for name in ("rm", "check"))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
