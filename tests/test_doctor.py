"""`klscale doctor`: what is there is told, and each thing that is wrong is found."""

from __future__ import annotations

import json
import shutil
import tomllib
from importlib import metadata

import pytest

import klscale
from conftest import ROOT
from klscale.inputs.texts import cache_directory
from klscale.studies import probe
from klscale.studies.verbs import doctor as doctor_module

WELL = {"problems": {}, "devices": [], "threads": 3, "cuda": None}


@pytest.fixture
def probed(monkeypatch, tmp_path):
    """What the process that imports torch says; the caches are empty."""
    said = dict(WELL)
    monkeypatch.setattr(doctor_module, "_probe", lambda modules: (said, said.get("failure", "")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return said


def problems(store):
    return [one.problem for one in klscale.doctor(store).problems]


def test_a_sound_installation(run, probed, fourteen):
    found = json.loads(run("doctor", "--store", fourteen, "--json").stdout)
    told = {(one["topic"], one["name"]): one["value"] for one in found}
    assert told["packages", "numpy"] == metadata.version("numpy")
    assert told["store", "content"] == "1 text sets, 14 vectors"
    assert "torch uses 3" in told["devices", "cpu"]
    assert not any(one["problem"] for one in found)
    shown = run("doctor", "--store", fourteen).stdout
    assert shown.endswith("Nothing is wrong.\n")
    assert max(map(len, shown.splitlines())) <= 100 + len(str(fourteen))


def test_damage_is_found_and_has_status_1(run, probed, fourteen, tmp_path):
    shutil.copytree(fourteen, tmp_path / "store")
    damaged = next((tmp_path / "store" / "vectors").rglob("*pythia-1b-*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    cache_directory().mkdir(parents=True)
    (cache_directory() / "texts-10k-pile.jsonl").write_text("half of it")
    shown = run("doctor", "--store", tmp_path / "store", status=1).stdout
    assert "1 files are damaged" in shown
    assert damaged.name in shown
    assert "texts-10k-pile.jsonl is not the published file." in shown
    assert "Nothing is wrong" not in shown


def test_every_extra_of_users_is_looked_at():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*doctor_module.EXTRAS} == declared.keys() - {"benchmark", "dev", "docs"}


def test_packages_that_lack_are_old_or_broken(probed, tmp_path, monkeypatch):
    required = ["numpy>=99", "no-such-package", 'peft>=0.1; extra == "lora"', 'gone; extra == "quant"', "torch"]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    probed["problems"] = {"torch": "OSError: libcudart.so.12: cannot open\x1b[31m"}
    found = {one.name: one for one in klscale.doctor(tmp_path / "store").findings if one.topic == "packages"}
    assert found["numpy"].problem == f"numpy {metadata.version('numpy')} is not >=99, which klscale needs."
    assert found["no-such-package"].remedy == "pip install 'no-such-package'"
    assert (found["gone"].value, found["gone"].problem) == ("not installed (extra quant)", "")
    assert "libcudart.so.12" in found["torch"].problem
    assert "\x1b" not in found["torch"].problem


def test_places_and_settings_that_cannot_be_used(probed, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KLSCALE_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("KLSCALE_LIMIT_SUITE_BYTES", "lots")
    found = problems(tmp_path / "file" / "store")
    assert f"{tmp_path / 'file'} is in the way: it is no directory." in found
    assert "KLSCALE_LIMIT_SUITE_BYTES='lots' is not a whole number." in found


def test_a_full_disk(probed, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert any("Only 5 MB are free" in problem for problem in problems(tmp_path / "store"))


def test_a_gpu_that_torch_does_not_see(probed, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_module.Path, "exists", lambda path: str(path) == "/dev/nvidia0" or path.is_dir())
    assert any("This is the build for the CPU." in problem for problem in problems(tmp_path / "store"))
    probed["devices"] = [["cuda:0", "NVIDIA H200", 140e9]]
    checkup = klscale.doctor(tmp_path / "store")
    assert not checkup.problems
    assert "cuda:0 NVIDIA H200, 140.0 GB" in str(checkup)


@pytest.mark.parametrize("end", ["raise SystemExit(3)", "import os; os.abort()"])
def test_a_package_that_ends_the_process(tmp_path, monkeypatch, end):
    (tmp_path / "hostile.py").write_text(end)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    found, failure = doctor_module._probe(["hostile"])
    assert found == WELL | {"threads": None}
    assert "The process that imports hostile ended without an answer." in failure


def test_what_packages_print_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "talks.py").write_text("print('not JSON')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert doctor_module._probe(["talks"]) == (WELL | {"threads": None, "problems": {"talks": ""}}, "")


def test_the_probe_itself():
    assert probe.probe(["json", "no_such_module"])["problems"] == {
        "json": "", "no_such_module": "ModuleNotFoundError: No module named 'no_such_module'"
    }  # fmt: skip
    assert probe.probe(["torch"])["threads"] >= 1
