"""Models of the hub, against a local server that speaks what of its protocol is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from typer.testing import CliRunner

from conftest import PATIENCE_S, plain_log_likelihoods, wait_until, write_texts
from klscale.cli import app
from klscale.inputs.references import Model, ModelRef
from klscale.inputs.suites import read_suite
from klscale.inputs.texts import load_texts
from klscale.progress import Progress
from klscale.sources.transformers import hub as hub_module
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.store.store import Store
from klscale.sweep import score as sweeps
from klscale.sweep.runs import checkpoints
from test_loading import adapted_log_likelihoods, make_adapter

NOON = "2026-01-01T12:00:00.000Z"
NOWHERE = "http://127.0.0.1:9"


class Hub:
    """`models`: name -> {revision: directory}; a commit is made up from each name and revision, a pull request is a
    revision `refs/pr/1`. `tags`: name -> tags."""

    def __init__(self):
        self.models, self.tags, self.gated, self.downloads = {}, {}, set(), []
        self.asked, self.at_once, self.most_at_once, self.together, self.pauses = [], 0, 0, 1, 0
        """API paths in order; how many are asked at a time, none answered before `together` are; how many pauses to ask
        for first."""
        self.stuck = None
        """Set by the server when it begins to send weights that never come, where a test puts an Event here."""
        self.stuck_at = None
        """The revision whose weights never come; None for any."""
        self.watch = lambda: None
        """Called whenever weights are asked for."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def log_message(self, *args):
                pass

            def reply(self, status, content=b"", body=True, **headers):
                self.send_response(status)
                for key, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(key.replace("_", "-"), value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def answer(self, body):
                path, _, query = self.path.lstrip("/").partition("?")
                if path.startswith("api/models/"):
                    with outer.lock:
                        outer.at_once += 1
                        outer.most_at_once = max(outer.at_once, outer.most_at_once)
                        if outer.most_at_once >= outer.together:
                            outer.gathered.set()
                    outer.gathered.wait()
                    self.api(path.removeprefix("api/models/"), "blobs=" in query, body)
                    with outer.lock:
                        outer.at_once -= 1
                    return
                name, _, rest = path.partition("/resolve/")
                revision, file = map(unquote, rest.split("/", 1)) if rest else ("", "")
                for known, directory in outer.models.get(name, {}).items():
                    commit = outer.commit(name, known)
                    if revision in (known, commit):
                        if name in outer.gated:
                            self.reply(403, b"", body, X_Error_Code="GatedRepo")
                        elif not (directory / file).is_file():
                            self.reply(404, b"", body, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                        else:
                            if body and file.endswith(".safetensors"):
                                outer.watch()
                                if outer.stuck and outer.stuck_at in (None, known):
                                    outer.stuck.set()
                                    outer.ended.wait()
                            content = (directory / file).read_bytes()
                            outer.downloads += [(known, file)] * body
                            etag = hashlib.sha256(content).hexdigest()
                            self.reply(200, content, body, ETag=f'"{etag}"', X_Repo_Commit=commit)
                        return
                self.reply(404, b"", body, X_Error_Code="RepoNotFound")

            def api(self, path, blobs, body):
                outer.asked.append(path)
                name, _, revision = path.partition("/revision/")
                revision = unquote(revision) or "main"
                if outer.pauses:
                    outer.pauses -= 1
                    self.reply(429, b"{}", body, RateLimit='"api";r=0;t=1')
                elif name.endswith("/discussions"):
                    found = outer.pull_requests(name.removesuffix("/discussions"))
                    self.json({"discussions": found, "count": len(found), "start": 0}, body)
                elif "/commits/" in name:
                    name, _, revision = name.partition("/commits/")
                    history = dict.fromkeys([unquote(revision), "main"])
                    told = {"date": NOON, "message": "", "authors": []}
                    self.json([{"id": outer.commit(name, r), "title": r, **told} for r in history], body)
                elif name.endswith("/refs") and name.removesuffix("/refs") in outer.models:
                    self.json(outer.refs(name.removesuffix("/refs")), body)
                elif "/tree/" in name:
                    self.reply(404, b"{}", body, X_Error_Code="EntryNotFound")
                elif name not in outer.models:
                    self.reply(404, b"{}", body, X_Error_Code="RepoNotFound")
                elif revision not in outer.models[name]:
                    self.reply(404, b"{}", body, X_Error_Code="RevisionNotFound")
                else:
                    info = {"id": name, "sha": outer.commit(name, revision), "tags": outer.tags.get(name, [])}
                    files = sorted(path for path in outer.models[name][revision].iterdir() if path.is_file())
                    info["siblings"] = [outer.sibling(path, blobs) for path in files]
                    self.json({"private": False, **info}, body)

            def json(self, value, body):
                self.reply(200, json.dumps(value).encode(), body, Content_Type="application/json")

        self.gathered, self.ended, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def pull_requests(self, name):
        """As the bot that converts pickles opens them."""
        told = {"title": "Adding `safetensors` variant of this model", "status": "open", "isPullRequest": True}
        told |= {"num": 1, "author": {"name": "SFconvertbot"}, "createdAt": NOON}
        return [{**told, "repo": {"name": name, "type": "model"}}] if "refs/pr/1" in self.models[name] else []

    def refs(self, name):
        """Revisions that begin with v are tags, the others branches."""
        found = {"branches": [], "tags": [], "converts": []}
        for revision in self.models[name]:
            kind, folder = ("tags", "refs/tags") if revision.startswith("v") else ("branches", "refs/heads")
            told = {"name": revision, "ref": f"{folder}/{revision}", "targetCommit": self.commit(name, revision)}
            found[kind].append(told)
        return found

    @staticmethod
    def sibling(path, blobs):
        """Weights are in LFS, as on the hub: their own size in the repository is that of a pointer."""
        if not blobs:
            return {"rfilename": path.name}
        content = path.read_bytes()
        told = {"rfilename": path.name, "size": len(content), "blobId": hashlib.sha256(content).hexdigest()}
        if path.suffix in (".safetensors", ".bin"):
            told["lfs"] = {"size": len(content), "sha256": told["blobId"], "pointerSize": 134}
            told |= {"size": 134, "blobId": "0" * 40}
        return told

    @staticmethod
    def commit(name, revision):
        return hashlib.sha1(f"{name}@{revision}".encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.gathered.set()
    made.ended.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def here(hub, tmp_path, monkeypatch):
    """This process asks the hub, with a cache of its own; returns the text set."""
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # made once, for the hub of that time
    point_at(hub.url, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    return load_texts(write_texts(tmp_path / "mine.jsonl"))


def point_at(url, patch):
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def klscale(here, tmp_path, monkeypatch):
    """Run a command against this hub, in this process; `silent`: no hub answers; `offline`: none is asked."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, silent=False, offline=False):
        with monkeypatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            if silent:
                point_at(NOWHERE, patch)
            result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result

    return call


def start(hub, tmp_path, *arguments, program="import klscale.cli; klscale.cli.main()", **environment):
    """A command in a process of its own, with nothing of the user's settings."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path, env={**clean, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_revisions_are_pinned_scored_and_known_offline(hub, klscale, make_model, tmp_path):
    hub.models["org/model"] = {"main": make_model("m", seed=0), "step5": make_model("s", seed=1)}
    result = klscale("score", "org/model", "org/model@step5", "--texts", "mine.jsonl", "--keep-downloads", "--json")
    assert result.exit_code == 0, result.stderr
    texts = load_texts(tmp_path / "mine.jsonl")
    store = Store(tmp_path / "klscale-store")
    vectors = store.vectors(texts)
    for row, revision in zip(vectors.log_likelihood, ("main", "step5"), strict=True):
        np.testing.assert_allclose(row, plain_log_likelihoods(hub.models["org/model"][revision], texts), atol=1e-3)
    identities = [entry.metadata["identity"] for entry in store.entries(texts.id)]
    assert identities == [f"commit:org/model@{hub.commit('org/model', r)}" for r in ("main", "step5")]
    assert vectors.attributes["step"].tolist() == [None, 5]

    before = len(hub.downloads)
    again = klscale("score", "org/model", "--json")
    assert json.loads(again.stdout)[0]["status"] == "present"
    assert len(hub.downloads) == before, "what is scored is not downloaded again"
    offline = klscale("compare", "org/model", "org/model@step5", silent=True)
    assert offline.exit_code == 0, offline.stderr
    for ref in ("org/model", "org/model@step5"):  # of the second, the tokenizer was that of the first
        rescored = klscale("score", ref, "--rescore", "--json", offline=True)
        assert json.loads(rescored.stdout)[0]["status"] == "scored", rescored.stderr


@pytest.mark.parametrize("files", ["tokenizer.json", "tokenizer.model"])
def test_a_model_of_the_hub_and_its_copy_are_one(hub, klscale, make_model, tmp_path, files):
    """The same numbers to the bit, whether the files are here or there; with a tokenizer of SentencePiece too."""
    made = make_model("m", vocab_size=300)
    if files == "tokenizer.model":
        trainer = pytest.importorskip(
            "sentencepiece", reason="needs sentencepiece: pip install 'klscale[sentencepiece]'"
        )
        trainer.SentencePieceTrainer.train(
            sentence_iterator=iter(["t abc deé"] * 50), model_prefix=str(made / "tokenizer"), vocab_size=300,
            minloglevel=2, byte_fallback=True, hard_vocab_limit=False, model_type="unigram",
        )  # fmt: skip
        (made / "tokenizer.json").unlink()
        (made / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    hub.models["org/model"] = {"main": made}
    found = {}
    for ref in ("org/model", "./m"):
        store = tmp_path / f"store of {ref[0]}"
        result = klscale("score", ref, "--texts", "mine.jsonl", "--store", str(store))
        assert result.exit_code == 0, result.stderr
        found[ref] = Store(store).vectors(load_texts(tmp_path / "mine.jsonl")).log_likelihood.tolist()
    assert found["org/model"] == found["./m"]


def test_a_branch_that_moved_is_another_vector(hub, klscale, make_model, monkeypatch):
    hub.models["org/model"] = {"main": make_model("m", seed=0)}
    assert klscale("score", "org/model", "--texts", "mine.jsonl").exit_code == 0
    hub.models["org/model"] = {"main": make_model("moved", seed=1)}
    hub.commit = lambda name, revision: "f" * 40
    result = klscale("score", "org/model", "--json")
    assert json.loads(result.stdout)[0]["status"] == "scored", result.stderr


@pytest.mark.parametrize(
    ("ref", "status", "message", "remedy"),
    [
        ("org/nothing", 2, "neither a directory here nor a model on the hub", "hf auth login"),
        ("org/model@step7", 2, "has no revision 'step7'", "branches and tags"),
        ("org/gated", 1, "org/gated is gated", "Accept the terms"),
        ("org/empty", 1, "org/empty cannot be fetched", "whole"),
        ("org/m-", 2, "neither a directory here nor a hub id", "Check the path"),
        ("1..2", 2, "neither a directory here nor a hub id", "Check the path"),
        ("org/model:/nf4", 2, "has no file '/nf4'", "It is no path"),
        ("org/model:../x.gguf", 2, "has no file '../x.gguf'", "It is no path"),
    ],
)
def test_what_the_hub_refuses_is_said(hub, klscale, make_model, tmp_path, ref, status, message, remedy):
    directory = make_model()
    (tmp_path / "empty").mkdir()
    hub.models = {
        "org/model": {"main": directory},
        "org/gated": {"main": directory},
        "org/empty": {"main": tmp_path / "empty"},
    }
    hub.gated.add("org/gated")
    result = klscale("score", ref, "--texts", "mine.jsonl")
    assert result.exit_code == status, result.stderr
    assert message in result.stderr
    assert remedy in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3, result.stderr


def test_an_adapter_and_its_model_are_pinned(hub, klscale, make_model, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    base = make_model("base")
    adapter = make_adapter(base, tmp_path / "adapter")
    config = adapter / "adapter_config.json"
    told = json.loads(config.read_text()) | {"base_model_name_or_path": "org/base", "revision": "step5"}
    config.write_text(json.dumps(told))
    hub.models = {"org/base": {"main": make_model("moved", seed=3), "step5": base}, "org/adapter": {"main": adapter}}
    for call in ({}, {"silent": True}):
        arguments = ("--texts", "mine.jsonl", "--rescore", "--keep-downloads", "--json")
        result = klscale("score", "org/adapter", *arguments, **call)
        assert json.loads(result.stdout)[0]["status"] == "scored", result.stderr + result.stdout
    texts = load_texts(tmp_path / "mine.jsonl")
    store = Store(tmp_path / "klscale-store")
    (entry,) = store.entries(texts.id)
    pinned = [f"commit:{name}@{hub.commit(name, r)}" for name, r in (("org/adapter", "main"), ("org/base", "step5"))]
    assert entry.metadata["identity"] == " on ".join(pinned)
    expected = adapted_log_likelihoods(base, adapter, texts)
    np.testing.assert_allclose(store.vectors(texts).log_likelihood[0], expected, atol=1e-3)


@pytest.mark.slow
def test_ctrl_c_in_a_download_ends_the_command(hub, make_model, tmp_path):
    hub.models["org/model"] = {"main": make_model()}
    hub.stuck = threading.Event()
    write_texts(tmp_path / "mine.jsonl")
    process = start(hub, tmp_path, "score", "org/model", "--texts", "mine.jsonl")
    assert hub.stuck.wait(PATIENCE_S)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not list((tmp_path / "klscale-store").rglob("*.claim"))


def test_an_unreachable_hub_is_said_at_once(klscale):
    result = klscale("score", "org/model", "--texts", "mine.jsonl", silent=True)
    assert result.exit_code == 1
    assert "the hub does not answer, and the local cache does not hold it" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 3, result.stderr


# ------------------------------------------------------------------------------------------- looked up, not yet loaded


def plan(models, texts, tmp_path, **options):
    return sweeps.score(models, texts, Store(tmp_path / "klscale-store"), dry_run=True, **options)


def suite_models(tmp_path, text):
    (tmp_path / "suite.yaml").write_text(text)
    return read_suite(tmp_path / "suite.yaml").models


def test_what_fails_names_its_line(hub, here, make_model, tmp_path):
    hub.models["org/model"] = {"main": make_model()}
    names = ["org/model@step7", "org/nothing", "./none", "org/model", "no hub id"]
    entries = [
        f"  - {{name: '{name.split('@')[0]}', revision: {(name + '@main').split('@')[1]}}}" for name in names[:2]
    ]
    entries += [f"  - name: {name}" for name in names[2:]]
    found = plan(suite_models(tmp_path, "\n".join(["models:", *entries])), here, tmp_path)
    place = f"{tmp_path / 'suite.yaml'}, line "
    whats = [outcome.error.what if outcome.error else outcome.status for outcome in found]
    assert whats == [
        f"{place}2: org/model has no revision 'step7'.",
        f"{place}3: 'org/nothing' is neither a directory here nor a model on the hub.",
        f"{place}4: {tmp_path / 'none'} is not a directory.",
        "missing",
        f"{place}6: 'no hub id' is neither a directory here nor a hub id.",
    ]
    assert all(len(str(outcome.error).splitlines()) <= 3 for outcome in found if outcome.error)


def test_a_gated_model_of_a_suite_names_its_line(hub, klscale, make_model, tmp_path):
    hub.models["org/gated"] = {"main": make_model()}
    hub.gated.add("org/gated")
    (tmp_path / "suite.yaml").write_text("texts: ./mine.jsonl\nmodels:\n\n  - name: org/gated\n")
    result = klscale("score", "--suite", "suite.yaml")
    assert result.exit_code == 1
    assert "suite.yaml, line 4: org/gated is gated." in result.stderr


def test_a_parent_that_is_nowhere_fails_its_model(hub, here, make_model, tmp_path, monkeypatch):
    hub.models["org/model"] = {"main": make_model()}
    make_model("base", seed=1)
    parents = ["org/mdoel", "./base", "./bsae", "org/model", "org/model@step9", "org/mdoel", "org/model%bfloat16"]
    entries = []
    for n, parent in enumerate(parents):
        make_model(f"child{n}", seed=n)
        entries.append(f"  - {{name: ./child{n}, parent: '{parent}'}}\n")
    models = suite_models(tmp_path, "models:\n" + "".join(entries))
    found = plan(models, here, tmp_path)
    bad = {n: outcome.error.what for n, outcome in enumerate(found) if outcome.error}
    assert sorted(bad) == [0, 2, 4, 5]
    assert bad[0] == f"{models[0].line}: {models[0].ref} has the parent org/mdoel, which is not there."
    assert f"{tmp_path / 'bsae'}, which is not there" in bad[2]
    assert hub.asked.count("org/mdoel") == 1, "each parent is looked up once"
    point_at(NOWHERE, monkeypatch)
    found = plan(models, here, tmp_path)
    assert [n for n, outcome in enumerate(found) if outcome.error] == [2], "silence proves nothing"


def test_a_parent_in_the_suite_or_the_store_is_there(hub, here, make_model, tmp_path):
    kept = make_model("kept")
    sweeps.score([kept.as_posix()], here, Store(tmp_path / "klscale-store"))
    kept.rename(tmp_path / "away")
    text = "models:\n  - {name: ./away, parent: ./kept}\n  - {name: ./away2, parent: ./away3}\n  - name: ./away3\n"
    found = plan(suite_models(tmp_path, text), here, tmp_path)
    assert [outcome.error is None for outcome in found] == [True, False, False]
    assert "away2 is not a directory" in found[1].error.what
    labelled = Model(ModelRef(str(tmp_path / "away")), {"parent": "a word of mine"})
    assert plan([labelled], here, tmp_path)[0].error is None, "only a suite file names its lines"


def test_look_ups_are_parallel_in_order_and_asked_once(hub, here, make_model, tmp_path):
    directory = make_model()
    hub.models["org/model"] = {f"step{n}": directory for n in range(40) if n != 7}
    hub.together = 2  # one after another, none would be answered
    refs = [f"org/model@step{n}{q}" for n in range(40) for q in ("", "+int8", "+nf4%bfloat16")]
    found = plan(refs, here, tmp_path)
    assert [str(outcome.ref) for outcome in found] == refs
    assert [n for n, outcome in enumerate(found) if outcome.error] == [21, 22, 23]
    assert sorted(hub.asked) == sorted(f"org/model/revision/step{n}" for n in range(40))
    assert 2 <= hub.most_at_once <= sweeps.LOOK_UPS


class Notes(Progress):
    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.mark.slow
def test_a_hub_that_asks_for_a_pause_gets_it(hub, here, make_model, tmp_path, monkeypatch):
    hub.models["org/model"] = {f"step{n}": make_model() for n in range(12)}
    hub.pauses, progress = 3, Notes()
    found = plan([f"org/model@step{n}" for n in range(12)], here, tmp_path, progress=progress)
    assert [outcome.status for outcome in found] == ["missing"] * 12
    assert len(hub.asked) == 15
    (note,) = progress.notes
    assert "going on in 2 seconds" in note
    monkeypatch.setattr(hub_module, "PAUSES", 1)
    hub.pauses = 1000
    (outcome,) = plan(["org/model@step1"], here, tmp_path)
    assert "the hub does not answer" in outcome.error.what


@pytest.mark.slow
def test_ctrl_c_while_models_are_looked_up(hub, make_model, tmp_path):
    """Answers that never come are not waited for."""
    model = make_model()
    hub.models["org/model"] = {f"step{n}": model for n in range(30)}
    hub.together = sweeps.LOOK_UPS + 1
    write_texts(tmp_path / "mine.jsonl")
    patient = (
        "from huggingface_hub import HfApi\nask = HfApi.model_info\n"
        "HfApi.model_info = lambda *names, **options: ask(*names, **options | {'timeout': None})\n"
        "import klscale.cli\nklscale.cli.main()"
    )
    refs = [f"org/model@step{n}" for n in range(30)]
    process = start(hub, tmp_path, "score", *refs, "--texts", "mine.jsonl", program=patient)
    wait_until(lambda: hub.at_once == sweeps.LOOK_UPS)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors


# ------------------------------------------------------------------------------------------------- what is downloaded


def shown_total(output):
    return next(line for line in output.splitlines() if line.startswith("to download: "))


def test_a_dry_run_tells_what_is_downloaded(hub, klscale, make_model, tmp_path):
    """To the byte; variants of one commit, and what two commits share, count once."""
    hub.models["org/model"] = {"main": make_model("m", seed=0), "step5": make_model("s", seed=1)}
    for directory in hub.models["org/model"].values():
        (directory / "README.md").write_text("Not read by any loader.")
        (directory / "optimizer.pt").write_bytes(b"0" * 10**6)
    shutil.copytree(hub.models["org/model"]["main"], tmp_path / "local")
    models = ["org/model", "org/model%bfloat16", "org/model@step5", "./local", "org/nothing"]
    arguments = ["score", *models, "--texts", "mine.jsonl"]
    result = klscale(*arguments, "--dry-run", "--json")
    assert result.exit_code == 1, result.stderr
    first, again, other, local, nothing = json.loads(result.stdout)
    assert not hub.downloads
    assert [record["download_bytes"] for record in (again, local)] == [0, 0]
    assert nothing["download_bytes"] is None

    assert klscale(*arguments, "--keep-downloads").exit_code == 1
    sizes = {"main": 0, "step5": 0}
    for revision, file in hub.downloads:
        sizes[revision] += (hub.models["org/model"][revision] / file).stat().st_size
    assert first["download_bytes"] == sizes["main"] > 50_000
    assert other["download_bytes"] == sizes["step5"]
    tokenizer = (hub.models["org/model"]["main"] / "tokenizer.json").stat().st_size
    assert other["download_bytes"] < sizes["main"] - tokenizer / 2, "the tokenizer is the same"

    store = ("--store", "another")
    planned = klscale(*arguments, "--dry-run", *store)
    assert shown_total(planned.stdout) == "to download: 0 bytes"
    assert "4 to be scored, 0 in the store already, 1 failed" in planned.stdout
    assert "to score: 240 texts" in planned.stdout
    silent = klscale(*arguments, "--dry-run", *store, silent=True)
    assert shown_total(silent.stdout) == "to download: 0 bytes", "offline nothing but the cache is read"
    for weights in (tmp_path / "hf").rglob("*.safetensors"):
        weights.unlink()
    silent = klscale(*arguments, "--dry-run", *store, silent=True)
    assert shown_total(silent.stdout) == "to download: 0 bytes, and 3 of unknown size"


@pytest.mark.slow
def test_the_weights_are_those_of_the_commit_that_is_recorded(hub, klscale, make_model, tmp_path):
    """A pull request that holds safetensors with other values is left alone, and not even looked for."""
    from transformers import AutoModelForCausalLM

    plain, other = make_model("plain"), make_model("other", seed=1)
    torch.save(AutoModelForCausalLM.from_pretrained(plain).state_dict(), plain / "pytorch_model.bin")
    (plain / "model.safetensors").unlink()
    hub.models["org/model"] = {"main": plain, "refs/pr/1": other}
    result = klscale("score", "org/model", "--texts", "mine.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    assert {revision for revision, _ in hub.downloads} == {"main"}
    assert not [path for path in hub.asked if "discussions" in path]
    texts, store = load_texts(tmp_path / "mine.jsonl"), Store(tmp_path / "klscale-store")
    (entry,) = store.entries(texts.id)
    assert entry.metadata["identity"] == f"commit:org/model@{hub.commit('org/model', 'main')}"
    assert entry.metadata["weights"] == ["pytorch_model.bin"]
    np.testing.assert_allclose(store.vectors(texts).log_likelihood[0], plain_log_likelihoods(plain, texts), atol=1e-3)

    asked = start(hub, tmp_path, "score", "org/model", "--rescore", DISABLE_SAFETENSORS_CONVERSION="0")
    _, errors = asked.communicate()
    assert asked.returncode == 0, errors
    assert "org/model/commits/refs%2Fpr%2F1" in hub.asked, "else this test would prove nothing"
    values = store.vectors(texts).log_likelihood[0]
    np.testing.assert_allclose(values, plain_log_likelihoods(plain, texts), atol=1e-3)


@pytest.mark.parametrize(
    ("tags", "parent"),
    [
        (["gpt_neox", "base_model:org/base", "base_model:finetune:org/base"], "org/base"),
        (["base_model:org/base"], "org/base"),
        (["base_model:quantized:org/base", "base_model:org/base"], "org/base"),
        (["base_model:adapter:org/base"], "org/base"),
        (["base_model:org/base", "base_model:merge:org/base"], None),
        (["base_model:org/one", "base_model:org/two", "base_model:finetune:org/one"], None),
        (["base_model:org/model"], None),
        (["base_model:finetune:org/base with words"], None),
        ([], None),
    ],
)
def test_the_parent_that_a_repository_names(tags, parent):
    assert hub_module._parent("org/model", tags) == parent


def test_the_parent_is_an_attribute_unless_the_suite_has_one(hub, klscale, make_model, tmp_path):
    hub.models = {"org/model": {"main": make_model("m"), "step5": make_model("s", seed=1)}, "org/base": {}}
    hub.models["org/base"]["main"] = make_model("b", seed=2)
    hub.tags["org/model"] = ["base_model:finetune:org/base"]
    suite = "texts: ./mine.jsonl\nmodels:\n  - name: org/model\n  - name: org/base\n"
    suite += "  - {name: org/model, revision: step5, parent: org/model}\n"
    (tmp_path / "suite.yaml").write_text(suite)
    result = klscale("score", "--suite", "suite.yaml", "--keep-downloads")
    assert result.exit_code == 0, result.stderr
    texts, store = load_texts(tmp_path / "mine.jsonl"), Store(tmp_path / "klscale-store")
    assert store.vectors(texts).attributes["parent"].to_dict() == {
        "org/model": "org/base", "org/base": None, "org/model@step5": "org/model",
    }  # fmt: skip
    offline = klscale("score", "org/model", "--rescore", "--json", offline=True)
    assert json.loads(offline.stdout)[0]["status"] == "scored", offline.stderr
    entry = store.entries(texts.id)[-1]
    assert (entry.ref.name, entry.metadata["weights"]) == ("org/model", ["model.safetensors"])
    assert "parent" not in entry.metadata["attributes"]


# ------------------------------------------------------------------------------------------------------------ a run


def test_a_pattern_of_revisions_stands_for_those_that_match(hub, here, make_model, tmp_path):
    """By step where the name tells one; branches and tags; asked once for all variants."""
    directory = make_model()
    hub.models["org/model"] = dict.fromkeys(("main", "step10", "step9", "step-10", "v2-step", "v1"), directory)
    refs = ["org/model@step*", "org/model@*1", "org/model@step?%bfloat16"]
    found = plan(refs, here, tmp_path)
    listed = ["step9", "step-10", "step10", "v1", "step9%bfloat16"]
    assert [str(outcome.ref) for outcome in found] == [f"org/model@{revision}" for revision in listed]
    assert [outcome.status for outcome in found] == ["missing"] * 5
    assert hub.asked.count("org/model/refs") == 1
    found = [str(ref) for ref in checkpoints(ModelRef("org/model", dtype="bfloat16"))]
    assert found == [f"org/model@{revision}%bfloat16" for revision in ("step9", "step-10", "step10")]
    assert checkpoints(ModelRef("org/model", "step9")) == [ModelRef("org/model", "step9")]


def test_a_pattern_that_nothing_matches_says_what_there_is(hub, here, make_model, tmp_path):
    hub.models["org/model"] = dict.fromkeys(("main", "step9"), make_model())
    (tmp_path / "suite.yaml").write_text("models:\n  - {name: org/model, revision: stage*}\n  - name: org/model\n")
    wrong, right = plan(read_suite(tmp_path / "suite.yaml").models, here, tmp_path)
    assert right.status == "missing"
    assert wrong.error.what.endswith("suite.yaml, line 2: org/model has no revision that matches 'stage*'.")
    assert wrong.error.why == "There are: step9, main."
    (outcome,) = plan(["org/nothing@step*"], here, tmp_path)
    assert outcome.error.what == "'org/nothing' is neither a directory here nor a model on the hub."


@pytest.mark.slow
def test_a_pattern_waits_for_a_hub_that_asks_for_a_pause(hub, here, make_model, tmp_path):
    hub.models["org/model"], hub.pauses, progress = {"step1": make_model()}, 1, Notes()
    (outcome,) = plan(["org/model@step*"], here, tmp_path, progress=progress)
    assert (outcome.status, len(progress.notes)) == ("missing", 1)


def test_a_pattern_offline_is_one_of_what_the_cache_holds(hub, here, make_model, tmp_path, monkeypatch):
    hub.models["org/model"] = {f"step{n}": make_model(f"m{n}", seed=n) for n in (1, 2, 30)}
    store = Store(tmp_path / "klscale-store")
    sweeps.score(["org/model@step1", "org/model@step30"], here, store)
    point_at(NOWHERE, monkeypatch)
    found = sweeps.score(["org/model@step*"], here, store)
    assert [(str(outcome.ref), outcome.status) for outcome in found] == [
        ("org/model@step1", "present"), ("org/model@step30", "present"),
    ]  # fmt: skip
    (outcome,) = sweeps.score(["org/other@step*"], here, store)
    assert "the hub does not answer, and the local cache does not hold it" in outcome.error.what


def cached(tmp_path, pattern="*.safetensors"):
    """The files of that name in the local cache, by revision's commit."""
    return sorted(path.parent.name for path in (tmp_path / "hf").rglob(f"snapshots/*/{pattern}"))


def blobs(tmp_path):
    return [path for path in (tmp_path / "hf").rglob("blobs/*") if path.stat().st_size > 50_000]


def sweep(models, texts, tmp_path, **options):
    found = sweeps.score(models, texts, Store(tmp_path / "klscale-store"), keep_downloads=False, **options)
    return [outcome.status for outcome in found]


@pytest.mark.slow
def test_a_sweep_holds_two_checkpoints_at_a_time(hub, here, make_model, tmp_path):
    """And in the end none. The tokenizer, which they share, is there for each."""
    hub.models["org/model"] = {f"step{n}": make_model(f"m{n}", seed=n) for n in range(5)}
    held = []
    hub.watch = lambda: held.append(len(blobs(tmp_path)))
    assert sweep(["org/model@step*"], here, tmp_path) == ["scored"] * 5
    assert len(held) == 5
    assert max(held) <= 1, "beside the one that is asked for"
    assert not list((tmp_path / "hf" / "hub").glob("models--*"))
    assert sum(file == "tokenizer.json" for _, file in hub.downloads) < 5
    values = Store(tmp_path / "klscale-store").vectors(here).log_likelihood
    for row, directory in zip(values, hub.models["org/model"].values(), strict=True):
        np.testing.assert_allclose(row, plain_log_likelihoods(directory, here), atol=1e-3)


def test_what_the_cache_held_before_stays(hub, here, make_model, tmp_path):
    """And works offline: what it shares with those that are dropped is there still."""
    models = {f"step{n}": make_model(f"m{n}", seed=n) for n in range(3)}
    hub.models["org/model"] = models
    for revision in ("step0", "step2"):
        shutil.copy(models["step1"] / "config.json", models[revision])
    load(resolve(ModelRef("org/model", "step1")))
    assert sweep(["org/model@step*", "org/model@step1"], here, tmp_path) == ["scored"] * 3 + ["present"]
    assert cached(tmp_path) == [hub.commit("org/model", "step1")]
    assert len(blobs(tmp_path)) == 1
    with pytest.MonkeyPatch.context() as patch:
        point_at(NOWHERE, patch)
        assert sweep(["org/model@step1"], here, tmp_path, rescore=True) == ["scored"]
    assert cached(tmp_path) == [hub.commit("org/model", "step1")]


@pytest.mark.slow
def test_variants_of_a_commit_are_fetched_once(hub, here, make_model, tmp_path):
    """However the models are ordered; and two at a time are held."""
    hub.models["org/model"] = {f"step{n}": make_model(f"m{n}", seed=n) for n in range(3)}
    held = []
    hub.watch = lambda: held.append(len(blobs(tmp_path)))
    assert sweep(["org/model@step*", "org/model@step*%bfloat16"], here, tmp_path) == ["scored"] * 6
    assert sorted(hub.downloads) == sorted(set(hub.downloads))
    assert max(held) <= 1
    assert cached(tmp_path) == []


def test_a_model_that_fails_is_dropped_too(hub, here, make_model, tmp_path):
    hub.models["org/model"] = {f"step{n}": make_model(f"m{n}", seed=n) for n in range(3)}
    weights = hub.models["org/model"]["step1"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-60_000])
    assert sweep(["org/model@step*"], here, tmp_path) == ["scored", "failed", "scored"]
    assert cached(tmp_path) == []


def test_an_adapter_is_dropped_with_its_model(hub, here, make_model, tmp_path):
    pytest.importorskip("peft", reason="needs the package peft: pip install klscale[lora]")
    hub.models["org/base"] = {"main": make_model("base")}
    for n in range(2):
        adapter = make_adapter(hub.models["org/base"]["main"], tmp_path / f"adapter{n}")
        config = adapter / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/base"}))
        hub.models[f"org/adapter{n}"] = {"main": adapter}
    hub.models["org/other"] = {"main": make_model("other", seed=1)}
    assert sweep(["org/adapter0", "org/other", "org/adapter1"], here, tmp_path) == ["scored"] * 3
    assert hub.downloads.count(("main", "model.safetensors")) == 2, "the base once, the other once"
    assert not list((tmp_path / "hf" / "hub").glob("models--*"))


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_drops_what_it_left(hub, here, make_model, tmp_path):
    hub.models["org/model"] = {f"step{n}": make_model(f"m{n}", seed=n) for n in range(3)}
    hub.stuck, hub.stuck_at = threading.Event(), "step1"
    process = start(hub, tmp_path, "score", "org/model@step*", "--texts", "mine.jsonl")
    assert hub.stuck.wait(PATIENCE_S)
    store = Store(tmp_path / "klscale-store")
    wait_until(lambda: store.entries(here.id))
    process.kill()
    process.communicate()
    left = [hub.commit("org/model", revision) for revision in ("step0", "step1")]
    assert sorted(cached(tmp_path, "config.json")) == sorted(left)
    hub.stuck = None
    assert sweep(["org/model@step*"], here, tmp_path) == ["present", "scored", "scored"]
    assert not list((tmp_path / "hf" / "hub").glob("models--*"))


def test_nothing_is_dropped_while_another_process_reads_there(hub, here, make_model, tmp_path):
    from klscale.sources.transformers.downloads import Downloads

    hub.models["org/model"] = {f"step{n}": make_model(f"m{n}", seed=n) for n in range(2)}
    one, other = (resolve(ModelRef("org/model", f"step{n}")) for n in range(2))
    mine, theirs = Downloads([[one]]), Downloads([])
    with mine.reading([one]):
        load(one)
    mine.done([one])
    with theirs.reading([other]):
        mine.drop()
        assert len(cached(tmp_path)) == 1
    mine.drop()
    assert cached(tmp_path) == []


def test_what_is_to_be_kept_is_kept_by_the_next_sweep_too(hub, here, make_model, tmp_path, monkeypatch):
    """A sweep that was cut short left a model; another that keeps its downloads scores it; a third would drop it."""
    from klscale.sources.transformers.downloads import Downloads

    hub.models["org/model"] = {"main": make_model()}
    resolved = resolve(ModelRef("org/model"))
    with Downloads([[resolved]]).reading([resolved]):
        load(resolved)
    sweeps.score(["org/model"], here, Store(tmp_path / "klscale-store"))
    assert sweep(["org/model%bfloat16"], here, tmp_path) == ["scored"]
    assert cached(tmp_path) == [hub.commit("org/model", "main")]


def test_the_command_keeps_downloads_where_asked_to(hub, klscale, make_model, tmp_path):
    """Without, what is scored is there all the same, offline too."""
    hub.models["org/model"] = {"main": make_model("m"), "step5": make_model("s", seed=1)}
    assert klscale("score", "org/model", "org/model@step5", "--texts", "mine.jsonl").exit_code == 0
    assert cached(tmp_path) == []
    offline = klscale("compare", "org/model", "org/model@step5", silent=True)
    assert offline.exit_code == 0, offline.stderr
    assert klscale("score", "org/model", "--rescore", "--keep-downloads").exit_code == 0
    assert cached(tmp_path) == [hub.commit("org/model", "main")]


def test_equal_weights_under_two_revisions_are_fetched_and_scored_once(hub, make_model, klscale):
    """They are other commits, and the hub says that their files hold the same; another model is scored for itself."""
    model, other = make_model("m", seed=0), make_model("o", seed=1)
    (copy := model.parent / "copy").mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("A later step.")
    hub.models["org/model"] = {"main": model, "step10": copy, "step20": other}
    result = klscale("score", "org/model@step10", "org/model@step20", "org/model", "--texts", "mine.jsonl", "--json")
    assert result.exit_code == 0, result.stderr
    assert [record["status"] for record in json.loads(result.stdout)] == ["scored", "scored", "present"]
    assert "scored once: org/model is org/model@step10" in " ".join(result.stderr.split())
    assert [revision for revision, file in hub.downloads if file == "model.safetensors"] == ["step10", "step20"]
