"""A store on a server that speaks S3, on loopback: faults, a listing that lags, and processes beside each other."""

from __future__ import annotations

import json
import logging
import random
import re
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs

import numpy as np
import pytest

from conftest import write_texts
from klscale.inputs.texts import load_texts
from klscale.store import remote
from klscale.store.store import Store, now
from klscale.vectors.scores import Scores

s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'klscale[s3]'")
pytest.importorskip("moto.server", reason="needs a server of S3: pip install 'moto[s3]' flask-cors")


class Faulty:
    """A WSGI application that counts requests, fails a share of them, and may hide what is new from listings.

    It fails as storage does: an error of the server, a word to slow down, or a connection that ends, before the request
    is done or, of one that writes, after it."""

    def __init__(self, inner):
        self.inner, self.share, self.random, self.hidden = inner, 0.0, random.Random(0), None
        self.asked, self.failed = Counter(), Counter()

    def __call__(self, environ, start_response):
        method = environ["REQUEST_METHOD"]
        listing = method == "GET" and "list-type" in parse_qs(environ.get("QUERY_STRING", ""))
        kind = "LIST" if listing else method
        self.asked[kind] += 1
        if self.random.random() < self.share:
            how = self.random.choice(["500", "503", "closed", "done but closed"])
            self.failed[how] += 1
            if how == "done but closed" and method == "PUT":
                b"".join(self.inner(environ, lambda *_: None))
            if "closed" in how:
                raise ConnectionAbortedError  # the server drops the connection
            code = {"500": "InternalError", "503": "SlowDown"}[how]
            words = {"500": "500 Internal Server Error", "503": "503 Slow Down"}[how]
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(words, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>later</Message></Error>".encode()]
        if listing and self.hidden:
            body = b"".join(self.inner(environ, start := _Captured()))
            body = self.hidden(body)
            headers = [(key, value) for key, value in start.headers if key.lower() != "content-length"]
            start_response(start.status, [*headers, ("Content-Length", str(len(body)))])
            return [body]
        return self.inner(environ, start_response)


class _Captured:
    def __call__(self, status, headers, _=None):
        self.status, self.headers = status, headers


@pytest.fixture(scope="module")
def server():
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        disable_nagle_algorithm = True

        def log(self, *args):
            pass

        def connection_dropped(self, *_):
            self.close_connection = True

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    app = Faulty(DomainDispatcherApplication(create_backend_app))
    made = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    made.app_faulty = app
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def bucket(server, monkeypatch):
    """A URL of a new bucket; credentials and address come from the environment, as people set them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(remote, "WAITS_S", (0.01,) * 4)
    faulty = server.app_faulty
    faulty.share, faulty.hidden, faulty.random = 0.0, None, random.Random(0)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"b{time.monotonic_ns()}"
    s3fs.S3FileSystem().mkdir(name)
    faulty.asked.clear()
    faulty.failed.clear()
    return f"s3://{name}/store"


MOCKS = ("mock://1", "mock://2?shift=0.1", "mock://3?tokens=pairs")


@pytest.fixture
def texts(tmp_path):
    return write_texts(tmp_path / "t.jsonl", 8)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1], ids=["as it should be", "one request in ten fails"])
def test_a_sweep_leaves_what_it_leaves_here(bucket, server, run, texts, share):
    server.app_faulty.share = share
    for store in (bucket, "here"):
        run("score", *MOCKS, "--texts", texts, "--store", store)
    assert bool(server.app_faulty.failed) == bool(share)
    here, there = (run("kl", "--store", store, "--json").stdout for store in ("here", bucket))
    assert here == there
    again = json.loads(run("score", *MOCKS, "--texts", texts, "--store", bucket, "--json").stdout)
    assert {row["status"] for row in again} == {"present"}
    assert ", 0 with a problem." in run("check", "--store", bucket).output
    server.app_faulty.share = 0.0
    assert not Store(bucket).files.list("partial", load_texts(texts).id)


@pytest.mark.slow
def test_compact_files_there_and_back_where_one_request_in_ten_fails(bucket, server, run, texts):
    run("score", *MOCKS, "--texts", texts, "--store", bucket)
    before = run("kl", "--store", bucket, "--json").stdout
    server.app_faulty.share = 0.1
    for command, n_vectors, n_compact in (("compact",), 0, 1), (("compact", "--undo"), 3, 0):
        run(*command, "--store", bucket)
        assert run("kl", "--store", bucket, "--json").stdout == before
        kept = Store(bucket).files
        assert len(kept.list("vectors", load_texts(texts).id)) == n_vectors
        assert len(kept.list("compact", load_texts(texts).id)) == n_compact


@pytest.mark.slow
def test_requests_do_not_grow_with_models_where_none_is_new(bucket, server, run, texts):
    """One listing of a directory whatever it holds, and no file is fetched twice."""
    asked = []
    for n in (2, 12):
        run("score", *(f"mock://{seed}" for seed in range(n)), "--texts", texts, "--store", bucket)
        run("kl", "--store", bucket)
        server.app_faulty.asked.clear()
        run("kl", "--store", bucket)
        asked.append(dict(server.app_faulty.asked))
    assert asked[0] == asked[1]
    assert sum(asked[0].values()) <= 15


def test_what_changed_there_is_read_anew(bucket, run, texts):
    run("score", "mock://1", "mock://2", "--texts", texts, "--store", bucket)
    before = json.loads(run("kl", "--store", bucket, "--json").stdout)
    other = Store(bucket)
    entry = other.entries(load_texts(texts).id)[0]
    scores = other.scores(entry)
    known = {name: value for name, value in entry.metadata.items() if name not in ("spans", "sampled")}
    values = scores.log_likelihood - np.arange(len(scores.log_likelihood))
    changed = Scores(scores.text, values, scores.n_tokens)
    other.write(load_texts(texts), changed, {**known, "date": now()})
    assert json.loads(run("kl", "--store", bucket, "--json").stdout) != before


@pytest.mark.parametrize("lag", [False, True], ids=["listed at once", "listed late"])
def test_one_of_many_at_one_moment_has_the_claim(bucket, server, lag):
    """The storage decides, although no listing shows a claim."""
    if lag:
        server.app_faulty.hidden = lambda body: re.sub(
            rb"<Contents>(?:(?!</Contents>).)*[.]claim.*?</Contents>", b"", body, flags=re.DOTALL
        )
    barrier, stores = threading.Barrier(6), [Store(bucket) for _ in range(6)]

    def claim(store):
        barrier.wait()
        return store.claim("0" * 12, "key")

    with ThreadPoolExecutor(6) as pool:
        held = [one for one in pool.map(claim, stores) if one is not None]
    assert len(held) == 1
    assert Store(bucket).claim("0" * 12, "key") is None
    held[0].release()
    assert Store(bucket).claim("0" * 12, "key").release() is None


def test_a_claim_whose_answer_was_lost_is_the_own_one(bucket, server, monkeypatch):
    """The storage has done what was asked, and the connection ended: the same request again finds the claim there."""
    store = Store(bucket)
    monkeypatch.setattr(server.app_faulty.random, "choice", lambda _: "done but closed")
    draws, create = [1.0], remote.Remote.create
    monkeypatch.setattr(server.app_faulty.random, "random", lambda: draws.pop() if len(draws) > 1 else 1.0)
    server.app_faulty.share = 0.5

    def loses_the_answer(self, path, data):
        draws.append(0.0)  # of the next request
        return create(self, path, data)

    monkeypatch.setattr(remote.Remote, "create", loses_the_answer)
    claim = store.claim("0" * 12, "key")
    assert server.app_faulty.failed == {"done but closed": 1}
    assert claim is not None
    claim.release()


def test_a_claim_of_a_process_that_is_gone_is_taken_over(bucket):
    store = Store(bucket)
    gone = {"key": "key", "owner": "x", "host": socket.gethostname(), "pid": 2**22 + 1, "beat": time.time()}
    store.files.write(store.files.path("partial", "0" * 12, "key.claim"), json.dumps(gone).encode())
    claim = store.claim("0" * 12, "key")
    assert claim is not None
    claim.release()


@pytest.mark.slow
def test_a_storage_that_does_not_answer_ends_the_command(bucket, server, run, texts):
    """With what was finished kept: the same command goes on."""
    run("score", "mock://1", "--texts", texts, "--store", bucket)
    server.app_faulty.share = 1.0
    failed = run("score", *MOCKS, "--texts", texts, "--store", bucket, status=1)
    assert "does not answer as it should" in failed.output
    assert "what was finished before is kept" in failed.output
    server.app_faulty.share = 0.0
    rows = json.loads(run("score", *MOCKS, "--texts", texts, "--store", bucket, "--json").stdout)
    assert [row["status"] for row in rows] == ["present", "scored", "scored"]


def test_without_credentials(bucket, monkeypatch, tmp_path, run, texts):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    failed = run("score", "mock://1", "--texts", texts, "--store", bucket, status=1)
    assert "Check its credentials and rights." in failed.output
