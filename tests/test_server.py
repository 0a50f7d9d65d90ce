"""The report on loopback: a real server, asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import signal
import subprocess
import sys
import threading
import time

import pytest

from conftest import PATIENCE_S
from klscale.errors import InputError
from klscale.show import server
from klscale.store.store import Store
from klscale.studies import maps
from mixed_store import STEPS, mixed_store


@contextlib.contextmanager
def serving(store, host):
    """The application for this host behind a server in a thread, on loopback; its port."""
    import uvicorn

    listening = server.listen("127.0.0.1", 0)
    app = server.application(store, host=host)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=running.run, args=([listening],))
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(PATIENCE_S)


@pytest.fixture
def served(tmp_path):
    """A store behind a server, and its port."""
    store = mixed_store(tmp_path / "store", STEPS[:2])
    with serving(store, "127.0.0.1") as port:
        yield store, port


def get(port, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read().decode()


def assert_headers(answer):
    """No other page frames it, guesses its type or keeps it, and no address leaves with a click."""
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.slow
def test_the_page_is_current_at_each_load(served):
    store, port = served
    answer, page = get(port)
    assert answer.status == 200
    assert "13 models" in page
    assert_headers(answer)
    assert get(port)[1] == page
    texts = store.resolve_texts(None)
    store.remove(store.entries(texts.id)[-1])
    assert "12 models" in get(port)[1]


def test_the_page_is_made_anew_when_anything_that_it_shows_changes(served, monkeypatch):
    """Vectors, maps, weights and the noise of reading; and only then."""
    store, port = served
    made = []
    monkeypatch.setattr(server, "read_contents", lambda *_, **__: None)
    monkeypatch.setattr(server.reports, "gather", lambda contents: None)
    monkeypatch.setattr(server.pages, "render", lambda data: made.append(data) or f"page {len(made)}")
    texts = store.resolve_texts(None)
    entry = store.entries(texts.id)[0]
    vectors, scores = store.vectors(texts), store.scores(entry)
    assert [get(port)[1] for _ in range(2)] == ["page 1"] * 2
    changes = (
        lambda: maps.kept_map(store, vectors.subset(vectors.names[:3])),
        lambda: store.write_weight_distances(entry.ref, "files:x", 300, {"files:y": 1.0}),
        lambda: store.write_noise_floor(texts.id, entry.key, vectors.kl()[0, 1]),
        lambda: store.put_texts(texts.with_clip(-110.0)),
        lambda: store.remove(entry),
    )
    for n, change in enumerate(changes, start=2):
        change()
        assert [get(port)[1] for _ in range(2)] == [f"page {n}"] * 2
    store.write_partial(texts.id, "0123456789ab", scores)
    assert get(port)[1] == f"page {n}", "work that is not finished shows nowhere"


def test_a_host_that_others_reach_answers_to_any_name(tmp_path, monkeypatch):
    monkeypatch.setattr(server._Pages, "current", lambda self: "page")
    with serving(Store(tmp_path / "store"), "0.0.0.0") as port:
        assert get(port, Host="machine.example")[0].status == 200
        assert get(port, Host="203.0.113.7:80")[0].status == 200
        assert get(port, "/other", Host="machine.example")[0].status == 404
    for host in server.LOOPBACK:
        with serving(Store(tmp_path / "store"), host) as port:
            assert get(port, Host="machine.example")[0].status == 400
            assert [get(port, Host=name)[0].status for name in ("localhost", "127.0.0.1:1", "[::1]:1")] == [200] * 3


def test_other_names_and_paths_are_refused(served, monkeypatch):
    """A page of another site that points a name of its own at this machine reads nothing."""
    _, port = served
    monkeypatch.setattr(server._Pages, "current", lambda self: "page")
    assert get(port, Host="evil.example")[0].status == 400
    assert get(port, Host=f"localhost:{port}")[0].status == 200
    for path in ("/store", "/../pyproject.toml", "/%2e%2e/etc/passwd"):
        assert get(port, path)[0].status == 404


def test_a_store_without_models_is_said_in_words(tmp_path, served):
    store, port = served
    texts = store.resolve_texts(None)
    for entry in store.entries(texts.id)[1:]:
        store.remove(entry)
    answer, text = get(port)
    assert answer.status == 503
    assert "holds 1 model" in text
    assert_headers(answer)
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_other_interfaces_only_when_told():
    with pytest.raises(InputError, match="other machines"):
        server.listen("0.0.0.0", 0)
    with server.listen("0.0.0.0", 0, expose=True) as listening:
        assert listening.getsockname()[0] == "0.0.0.0"


def test_a_port_that_is_taken():
    with server.listen("127.0.0.1", 0) as taken, pytest.raises(InputError, match="Nothing can listen"):
        server.listen("127.0.0.1", taken.getsockname()[1])


@pytest.mark.slow
def test_serve_command(tmp_path):
    """Says where it listens; Ctrl-C ends it."""
    mixed_store(tmp_path / "store", STEPS[:2])
    command = [sys.executable, "-m", "klscale", "serve", "--store", "store", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        assert get(port)[0].status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()


def test_serve_refuses_what_it_cannot_show(run, tmp_path, monkeypatch):
    """At the start, rather than page by page."""
    monkeypatch.setattr(server, "run", lambda app, listening: pytest.fail("serves"))
    assert "is empty" in run("serve", "--store", "nowhere", status=2).output
    store = mixed_store(tmp_path / "store", STEPS[:2])
    for entry in store.entries(store.resolve_texts(None).id)[1:]:
        store.remove(entry)
    assert "holds 1 model" in run("serve", "--store", "store", "--port", "0", status=2).output


def test_the_state_of_a_store_changes_with_its_files(tmp_path):
    store = mixed_store(tmp_path / "store", STEPS[:2])
    texts = store.resolve_texts(None)
    before = store.state("vectors")
    assert store.state("vectors") == before
    assert Store(tmp_path / "none").state("vectors") == store.state("nowhere")
    entry = store.entries(texts.id)[0]
    store.remove(entry)
    assert store.state("vectors") != before
    time.sleep(0.01)  # a tick of the file system's clock
    removed = store.state("vectors")
    other = store.entries(texts.id)[0]
    store.write(texts, store.scores(other), dict(other.metadata))
    assert store.state("vectors") != removed
