"""Text sets: loading, chunking, identity, and the one download, against a local HTTP server."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from klscale.errors import InputError, KlscaleError
from klscale.inputs import texts as texts_module
from klscale.inputs.texts import TextSet, build_texts, chunk, download_pile, git_blob_id, load_texts, pocket_texts


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return str(path)


# --------------------------------------------------------------------------------------------------------- identity


def test_the_id_is_of_texts_and_order():
    one = TextSet.from_texts("a", ["x", "yz"])
    assert one.id == TextSet.from_texts("b", ["x", "yz"], domain=("p", "q"), clip=-3.0).id
    assert len({one.id, *(TextSet.from_texts("a", t).id for t in (["yz", "x"], ["xy", "z"], ["x", "yz", ""]))}) == 4
    assert one.with_clip(-1.0).id == one.id


def test_bytes_are_utf8():
    assert TextSet.from_texts("a", ["é", "日本", "🙂x"]).bytes.tolist() == [2, 6, 5]


# ---------------------------------------------------------------------------------------------------------- loading


def test_jsonl_with_labels(tmp_path):
    path = write(
        tmp_path / "set.v1.jsonl",
        {"text": "one", "pile_set_name": "Github", "pile_idx": 7},
        {"text": "two", "pile_set_name": "ArXiv", "pile_idx": 7},
    )
    found = load_texts(path)
    assert (found.name, found.texts) == ("set", ("one", "two"))
    assert (found.domain, found.document) == (("Github", "ArXiv"), ("7", "7"))
    with gzip.open(tmp_path / "set.jsonl.gz", "wt") as file:
        file.write('{"text": "one"}\n{"text": "two"}\n')
    assert load_texts(tmp_path / "set.jsonl.gz").id == found.id


def test_parquet_and_plain_text(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": ["one", "two"], "domain": ["a", "b"]}).to_parquet(tmp_path / "set.parquet")
    write(tmp_path / "set.txt", "one", "", "two")
    assert load_texts(tmp_path / "set.parquet").id == load_texts(tmp_path / "set.txt").id


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"text": "one"}', "{broken"], r"line 2: not JSON"),
        (['{"text": "one"}', '{"txt": "two"}'], r"line 2: no text"),
        (['{"text": ""}'], r"line 1: no text"),
        (['{"text": 5}'], r"line 1: no text"),
        (["", ""], "holds no texts"),
    ],
)
def test_broken_files_name_the_line(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        load_texts(write(tmp_path / "bad.jsonl", *lines))


def test_damaged_files_are_said(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n' * 99)[:-20])
    write(tmp_path / "surrogate.jsonl", '{"text": "\\ud800"}')
    for name in ("bad.parquet", "cut.jsonl.gz", "surrogate.jsonl"):
        with pytest.raises(InputError, match=r"cannot be read|not Unicode"):
            load_texts(tmp_path / name)


def test_labels_that_some_texts_lack_are_no_labels(tmp_path):
    import pandas as pd

    pd.DataFrame({"text": ["one", "two"], "document": ["a", None]}).to_parquet(tmp_path / "set.parquet")
    assert load_texts(tmp_path / "set.parquet").document is None


def test_the_last_ending_decides(tmp_path):
    assert load_texts(write(tmp_path / "book.txt.jsonl", {"text": "one"}, {"text": "two"})).texts == ("one", "two")


def test_the_published_file_by_its_path_has_its_clip(tmp_path, monkeypatch):
    path = write(tmp_path / "mine.jsonl", *({"text": f"t{n}"} for n in range(10_000)))
    assert load_texts(path).clip is None
    monkeypatch.setattr(texts_module, "PILE_BLOB_ID", git_blob_id(tmp_path / "mine.jsonl"))
    assert (load_texts(path).name, load_texts(path).clip) == ("pile-10k", texts_module.PILE_CLIP)


def test_not_utf8_names_the_line(tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 2: not UTF-8"):
        load_texts(tmp_path / "bad.jsonl")


def test_unknown_names_are_met_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'pile-10k'"):
        load_texts("pile10k")
    with pytest.raises(InputError, match="no such file"):
        load_texts("nowhere/texts.jsonl")


# --------------------------------------------------------------------------------------------------------- chunking


def test_chunks_end_at_characters_and_keep_the_published_lengths():
    document = "aé日🙂" * 400  # 10 bytes a round
    pieces = chunk(document)
    sizes = [len(piece.encode()) for piece in pieces]
    assert all(256 < size <= 1024 for size in sizes)
    assert "".join(pieces) == document[: sum(map(len, pieces))]
    # no chunk could have held one more character
    following = [document[sum(map(len, pieces[: n + 1]))] for n in range(len(pieces) - 1)]
    assert all(size + len(c.encode()) > 1024 for size, c in zip(sizes, following, strict=False))
    assert chunk("x" * 256) == []
    assert chunk("x" * 257) == ["x" * 257]
    assert [len(piece) for piece in chunk("x" * 1280 + "y")] == [1024, 257]


def test_build_samples_as_published():
    """random.seed(42); random.sample(chunks, n)."""
    import random

    documents = [(f"d{n}", f"{n:04d}" * 300, None) for n in range(50)]
    every = [piece for _, text, _ in documents for piece in chunk(text)]
    random.seed(42)
    assert build_texts("t", documents, 10).texts == tuple(random.sample(every, 10))
    built = build_texts("t", documents, 10)
    assert all(
        text.startswith(document[1:].zfill(4)) for text, document in zip(built.texts, built.document, strict=True)
    )
    with pytest.raises(InputError, match="1,000 texts were asked for; the documents give 50"):
        build_texts("t", documents, 1000)


def test_pocket_texts_need_no_download():
    found = pocket_texts()
    assert len(found) == 500
    assert found.bytes.max() <= 256
    assert found.bytes.min() > 64
    assert set(found.domain) == {"documentation", "source"}
    assert found.id == pocket_texts().id
    training = {
        document
        for document, _, domain in texts_module.pocket_corpus()
        if not texts_module.is_held_out(document, domain)
    }
    assert not training & set(found.document)


# --------------------------------------------------------------------------------------------------------- download


class Server:
    """Serves one file, with ranges; `cut` bytes at most for each connection; counts requests."""

    def __init__(self, content: bytes):
        self.content, self.cut, self.requests = content, None, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = self.headers.get("Range")
                outer.requests.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
                if asked and start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.cut])

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/texts.jsonl"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server():
    made = Server("".join(json.dumps({"text": f"text {n} " * 30, "pile_idx": n}) + "\n" for n in range(500)).encode())
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def blob_id(server, tmp_path):
    (tmp_path / "copy").write_bytes(server.content)
    return git_blob_id(tmp_path / "copy")


def test_git_blob_id_is_gits(tmp_path):
    (tmp_path / "f").write_bytes(b"what is up, doc?")
    assert git_blob_id(tmp_path / "f") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"  # the example of Pro Git, 10.2


def test_download_is_verified_and_cached(server, blob_id):
    path = download_pile(url=server.url, blob_id=blob_id)
    assert path.read_bytes() == server.content
    assert download_pile(url=server.url, blob_id=blob_id) == path
    assert len(server.requests) == 1


def test_another_file_is_refused_and_not_kept(server):
    with pytest.raises(KlscaleError, match="served another file than the published one"):
        download_pile(url=server.url)
    assert list(texts_module.cache_directory().iterdir()) == []


def test_a_download_cut_off_half_way_resumes(server, blob_id):
    server.cut = 30_000  # each connection brings this much
    with pytest.raises(KlscaleError, match="stopped early") as caught:
        download_pile(url=server.url, blob_id=blob_id)
    assert "resume" in caught.value.remedy
    assert server.requests == [None, "bytes=30000-", "bytes=60000-"]
    server.cut = None
    assert download_pile(url=server.url, blob_id=blob_id).read_bytes() == server.content
    assert server.requests[-1] == "bytes=90000-"


def test_no_network_says_what_to_do_instead(server):
    server.server.shutdown()
    server.server.server_close()
    with pytest.raises(KlscaleError, match="could not be downloaded") as caught:
        download_pile(url=server.url)
    assert "--texts pocket" in caught.value.remedy


def test_the_mirror_of_the_environment_and_the_clip(server, blob_id, monkeypatch):
    monkeypatch.setenv("KLSCALE_PILE_URL", server.url)
    monkeypatch.setattr(texts_module, "download_pile", lambda **_: download_pile(blob_id=blob_id))
    found = load_texts("pile-10k")
    assert (found.name, len(found), found.clip) == ("pile-10k", 500, texts_module.PILE_CLIP)
    assert found.document == tuple(map(str, np.arange(500)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deep.jsonl", "line 1: nested too deeply"),
        ("deep2.jsonl.gz", "line 1: nested too deeply"),
        ("empty.jsonl.zip", "cannot be read"),
        ("nl.jsonl.zip", "cannot be read"),
        ("bom.jsonl.zip", "cannot be read"),
    ],
)
def test_hostile_and_damaged_files_have_clear_errors(shared, name, said):
    with pytest.raises(InputError, match=said) as caught:
        load_texts(shared / "cases" / "texts" / name)
    assert name in caught.value.what


def test_a_file_that_expands_beyond_the_limit(tmp_path, monkeypatch):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.write('{"text": "' + "a" * 5000 + '"}\n')
    assert len(load_texts(tmp_path / "x.jsonl.gz")) == 1
    monkeypatch.setenv("KLSCALE_LIMIT_TEXT_FILE_BYTES", "5000")
    with pytest.raises(InputError, match="bytes, decompressed"):
        load_texts(tmp_path / "x.jsonl.gz")


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "one"}\n{"text": "two"}\n')
    assert load_texts(tmp_path / "x.jsonl").texts == ("one", "two")
