"""Models of the hub, against a local server that speaks what of its protocol is used."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from conftest import plain_log_likelihoods, write_texts
from klscale.store import Store
from klscale.texts import load_texts
from test_loading import adapted_log_likelihoods, make_adapter


class Hub:
    """`models`: name -> {revision: directory}; a commit is made up from each name and revision."""

    def __init__(self):
        self.models, self.gated, self.downloads = {}, set(), []
        self.stuck = None
        """Set by the server when it begins to send weights that never come, where a test puts an Event here."""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

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
                path = unquote(self.path.split("?")[0]).lstrip("/")
                if path.startswith("api/models/"):
                    name, _, revision = path.removeprefix("api/models/").partition("/revision/")
                    if "/tree/" in name:
                        self.reply(404, b"{}", body, X_Error_Code="EntryNotFound")
                    elif name not in outer.models:
                        self.reply(404, b"{}", body, X_Error_Code="RepoNotFound")
                    elif (revision or "main") not in outer.models[name]:
                        self.reply(404, b"{}", body, X_Error_Code="RevisionNotFound")
                    else:
                        files = sorted(p.name for p in outer.models[name][revision or "main"].iterdir())
                        info = {"id": name, "sha": outer.commit(name, revision or "main"), "tags": []}
                        info["siblings"] = [{"rfilename": file} for file in files]
                        self.reply(200, json.dumps(info).encode(), body, Content_Type="application/json")
                    return
                name, _, rest = path.partition("/resolve/")
                revision, _, file = rest.partition("/")
                for known, directory in outer.models.get(name, {}).items():
                    commit = outer.commit(name, known)
                    if revision in (known, commit):
                        if name in outer.gated:
                            self.reply(403, b"", body, X_Error_Code="GatedRepo")
                        elif not (directory / file).is_file():
                            self.reply(404, b"", body, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
                        else:
                            if outer.stuck and body and file.endswith(".safetensors"):
                                outer.stuck.set()
                                outer.ended.wait(120)
                            content = (directory / file).read_bytes()
                            outer.downloads += [(known, file)] * body
                            etag = hashlib.sha256(content).hexdigest()
                            self.reply(200, content, body, ETag=f'"{etag}"', X_Repo_Commit=commit)
                        return
                self.reply(404, b"", body, X_Error_Code="RepoNotFound")

        self.ended = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def commit(name, revision):
        return hashlib.sha1(f"{name}@{revision}".encode(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub():
    made = Hub()
    yield made
    made.ended.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def klscale(hub, tmp_path):
    """Run a command against this hub, with a cache of its own."""
    write_texts(tmp_path / "mine.jsonl")

    def call(*arguments, **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        return subprocess.run(
            [sys.executable, "-m", "klscale", *arguments],
            cwd=tmp_path, capture_output=True, text=True,
            env={**clean, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), **environment},
        )  # fmt: skip

    return call


def test_revisions_are_pinned_scored_and_known_offline(hub, klscale, make_model, tmp_path):
    hub.models["org/model"] = {"main": make_model("m", seed=0), "step5": make_model("s", seed=1)}
    result = klscale("score", "org/model", "org/model@step5", "--texts", "mine.jsonl", "--json")
    assert result.returncode == 0, result.stderr
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
    offline = klscale("compare", "org/model", "org/model@step5", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0, offline.stderr
    rescored = klscale("score", "org/model", "--rescore", "--json", HF_HUB_OFFLINE="1")
    assert json.loads(rescored.stdout)[0]["status"] == "scored", rescored.stderr


def test_a_branch_that_moved_is_another_vector(hub, klscale, make_model, monkeypatch):
    hub.models["org/model"] = {"main": make_model("m", seed=0)}
    assert klscale("score", "org/model", "--texts", "mine.jsonl").returncode == 0
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
    assert result.returncode == status, result.stderr
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
    for call in ({}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        result = klscale("score", "org/adapter", "--texts", "mine.jsonl", "--rescore", "--json", **call)
        assert json.loads(result.stdout)[0]["status"] == "scored", result.stderr + result.stdout
    texts = load_texts(tmp_path / "mine.jsonl")
    store = Store(tmp_path / "klscale-store")
    (entry,) = store.entries(texts.id)
    pinned = [f"commit:{name}@{hub.commit(name, r)}" for name, r in (("org/adapter", "main"), ("org/base", "step5"))]
    assert entry.metadata["identity"] == " on ".join(pinned)
    expected = adapted_log_likelihoods(base, adapter, texts)
    np.testing.assert_allclose(store.vectors(texts).log_likelihood[0], expected, atol=1e-3)


def test_ctrl_c_in_a_download_ends_the_command(hub, make_model, tmp_path):
    hub.models["org/model"] = {"main": make_model()}
    hub.stuck = threading.Event()
    write_texts(tmp_path / "mine.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "klscale", "score", "org/model", "--texts", "mine.jsonl"],
        cwd=tmp_path, env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert hub.stuck.wait(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not list((tmp_path / "klscale-store").rglob("*.claim"))


def test_an_unreachable_hub_is_said_at_once(klscale):
    result = klscale("score", "org/model", "--texts", "mine.jsonl", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1
    assert "the hub does not answer, and the local cache does not hold it" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 3, result.stderr
