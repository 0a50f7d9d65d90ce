"""Texts in the files that people have: tables, compressed files, data sets of Hugging Face, a pipe."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from klscale.errors import InputError
from klscale.inputs import text_files
from klscale.inputs.texts import TextSet, load_texts, read_documents

TEXTS = ("one, with a comma", 'two "quoted"\nin two lines', "drei äöü", "NA")
LABELLED = TextSet.from_texts("set", TEXTS, document=("a", "a", "b", "b"))
TABLE = pa.table({"text": TEXTS, "document": LABELLED.document, "picture": [[1.0, 2.0]] * 4})
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)


def parquet(table=TABLE, **how):
    file = io.BytesIO()
    pq.write_table(table, file, **how)
    return file.getvalue()


def stream(table=TABLE):
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as written:
        written.write_table(table, max_chunksize=2)
    return file.getvalue()


def saved(directory, table=TABLE, name="data-00000-of-00001.arrow", **state):
    """What `save_to_disk` of datasets 4 writes, as far as it is read."""
    directory.mkdir(parents=True)
    (directory / name).write_bytes(stream(table))
    made = {"_data_files": [{"filename": name}], "_format_type": None, "_split": "train", **state}
    (directory / "state.json").write_text(json.dumps(made))
    return directory


def csv(separator=","):
    quoted = [[text.replace('"', '""'), label] for text, label in zip(TEXTS, LABELLED.document, strict=True)]
    rows = [separator.join(f'"{cell}"' for cell in row) for row in [["text", "document"], *quoted]]
    return ("\ufeff" + "\r\n".join(rows) + "\r\n").encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("set.csv", csv()),
        ("set.tsv", csv("\t")),
        ("semicolons.csv", csv(";")),
        ("set.csv.gz", gzip.compress(csv())),
        ("set.parquet", parquet()),
        ("groups.parquet", parquet(row_group_size=1, compression="zstd")),
    ],
)
def test_tables(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = load_texts(tmp_path / name)
    assert (found.texts, found.document) == (LABELLED.texts, LABELLED.document)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        ("gz", gzip.compress),
        ("zst", lambda data: pa.compress(data, codec="zstd", asbytes=True)),
        ("bz2", bz2.compress),
        ("xz", lzma.compress),
    ],
)
def test_compressed_lines_whole_and_cut_off(tmp_path, ending, compress):
    path = tmp_path / f"set.jsonl.{ending}"
    data = compress(LINES.encode() * 50)
    path.write_bytes(data)
    assert load_texts(path).texts == TEXTS * 50
    path.write_bytes(data[:-9])
    with pytest.raises(InputError, match="cannot be read"):
        load_texts(path)


def test_responses_and_places_in_texts_from_a_table(tmp_path):
    (tmp_path / "said.csv").write_text("prompt,response\nHow?,So.\nWhy?,Because.\n")
    found = load_texts(tmp_path / "said.csv")
    assert found.texts == ("So.", "Because.")
    assert [prompt[0].content for prompt in found.prompts] == ["How?", "Why?"]
    (tmp_path / "drawn.csv").write_text("text,prompt_bytes\nabcdef,3\nabc,0\n")
    assert load_texts(tmp_path / "drawn.csv").prompt_bytes.tolist() == [3, 0]
    messages = [[{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]] * 2
    (tmp_path / "said.parquet").write_bytes(parquet(pa.table({"messages": messages})))
    assert load_texts(tmp_path / "said.parquet").texts == ("So.", "So.")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.csv", b"text,document\none,a\n,b\n", "row 2: no text"),
        ("x.csv", b"words\none\n", "row 1: no text"),
        ("x.csv", b'text\n"never closed\n', "cannot be read"),
        ("x.csv", b"text\n\xff\xfe\n", "cannot be read"),
        ("x.csv", b"text,document\none, two and three,a\ntwo,b\n", "Expected 2 columns, got 3"),
        ("x.csv", b"text,document\none\n", "Expected 2 columns, got 1"),
        ("x.csv", b"text,text\none,two\n", "Several columns are named 'text'"),
        ("x.csv", b"", "cannot be read"),
        ("x.parquet", parquet(pa.table({"words": TEXTS})), "row 1: no text|holds no texts"),
        ("x.parquet", parquet(pa.table({"text": [1, 2]})), "row 1: no text"),
        ("x.parquet", parquet()[:-20], "cannot be read"),
        ("x.jsonl.zst", LINES.encode(), "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=said):
        load_texts(tmp_path / name)


@pytest.mark.parametrize("write", [parquet, stream])
def test_a_small_file_that_repeats_a_large_value_ends_at_the_limit(tmp_path, monkeypatch, write):
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 5000, pa.int32()), ["x" * 10_000])
    data = write(pa.table({"text": repeated}))
    assert len(data) < 500_000
    if write is parquet:
        (tmp_path / "x.parquet").write_bytes(data)
        place = tmp_path / "x.parquet"
    else:
        place = saved(tmp_path / "x", pa.table({"text": repeated}))
    monkeypatch.setenv("KLSCALE_LIMIT_TEXT_FILE_BYTES", "1000000")
    with pytest.raises(InputError, match=r"1,0\d\d,\d\d\d bytes, decompressed"):
        load_texts(place)


# ------------------------------------------------------------------------------------------------ data sets on the disk


def test_a_directory_of_a_data_set(tmp_path):
    found = load_texts(saved(tmp_path / "mine"))
    assert (found.name, found.texts, found.document) == ("mine", LABELLED.texts, LABELLED.document)


def test_a_directory_of_parquet_files(tmp_path):
    for n, part in enumerate([TABLE.slice(0, 1), TABLE.slice(1)]):
        (tmp_path / f"part-{n}.parquet").write_bytes(parquet(part))
    assert load_texts(tmp_path).texts == TEXTS


def test_splits_are_chosen_by_their_directory(tmp_path):
    saved(tmp_path / "all" / "train")
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert load_texts(tmp_path / "all").texts == TEXTS
    saved(tmp_path / "all" / "test", TABLE.slice(0, 2))
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(InputError, match="holds 2 splits: train, test"):
        load_texts(tmp_path / "all")
    assert load_texts(tmp_path / "all" / "test").texts == TEXTS[:2]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"_data_files": [{"filename": "../secret.arrow"}]}, "not in the directory"),
        ({"_data_files": [{"filename": None}]}, "not in the directory"),
        ({"_data_files": [[]]}, "not in the directory"),
        ({"_data_files": 5}, "no list under '_data_files'"),
        ({"_data_files": []}, "holds no texts"),
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "saved as row numbers"),
    ],
)
def test_a_state_that_cannot_be_followed(tmp_path, state, said):
    (tmp_path / "secret.arrow").write_bytes(stream())
    with pytest.raises(InputError, match=said):
        load_texts(saved(tmp_path / "mine", **state))


def test_damaged_data_sets(tmp_path):
    place = saved(tmp_path / "mine")
    whole = (place / "data-00000-of-00001.arrow").read_bytes()
    for end in (0, 5, 300, len(whole) // 2):
        (place / "data-00000-of-00001.arrow").write_bytes(whole[:end])
        with pytest.raises(InputError, match="cannot be read"):
            load_texts(place)
    (place / "state.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_texts(place)
    (place / "state.json").unlink()
    with pytest.raises(InputError, match="a directory without texts"):
        load_texts(place)


def test_documents_of_every_kind(tmp_path):
    (tmp_path / "t.csv").write_bytes(csv())
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"a whole\nbook"))
    found = [*read_documents([tmp_path / "t.csv", saved(tmp_path / "mine"), tmp_path / "book.txt.gz"])]
    assert [text for _, text, _ in found] == [*TEXTS, *TEXTS, "a whole\nbook"]
    assert [document for document, _, _ in found][:4] == ["a", "a", "b", "b"]
    with pytest.raises(InputError, match="is not a file"):
        [*read_documents([tmp_path / "none.csv"])]


# ------------------------------------------------------------------------------------------------------ standard input


@pytest.mark.parametrize(("data", "texts"), [(LINES, TEXTS), ("one\n\ntwo\n", ("one", "two"))])
def test_a_pipe(monkeypatch, data, texts):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data.encode()), isatty=lambda: False))
    found = load_texts("-")
    assert (found.name, found.texts) == ("stdin", texts)


def test_a_pipe_on_the_command_line(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from klscale.cli import app

    monkeypatch.chdir(tmp_path)
    lines = "".join(f"A line of this pipe, the {n}th one.\n" for n in range(40))
    scored = CliRunner().invoke(app, ["compare", "mock://1", "mock://2", "--texts", "-", "--json"], input=lines)
    assert scored.exit_code == 0, scored.output
    assert json.loads(scored.stdout)[0]["n_texts"] == 40
    broken = CliRunner().invoke(app, ["texts", "info", "-"], input='{"text": "one"}\n{"text"')
    assert broken.exit_code == 2
    assert "standard input, line 2: not JSON" in broken.output


def test_a_terminal_is_no_pipe(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(InputError, match="is a terminal"):
        load_texts("-")


# -------------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def data_sets(tmp_path, monkeypatch):
    """A local hub: name -> {path in the converted branch: bytes}; counts what was fetched."""
    from huggingface_hub import constants

    made = SimpleNamespace(files={}, fetched=[])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def reply(self, status, content=b"", **headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            path = unquote(self.path.partition("?")[0])
            if path.startswith("/api/datasets/"):
                name, _, revision = path.removeprefix("/api/datasets/").partition("/revision/")
                if name not in made.files:
                    self.reply(404, b"{}", X_Error_Code="RepoNotFound")
                elif revision != text_files.CONVERTED:
                    self.reply(404, b"{}", X_Error_Code="RevisionNotFound")
                else:
                    listed = [{"rfilename": path, "size": len(data)} for path, data in made.files[name].items()]
                    told = {"id": name, "sha": "1" * 40, "siblings": [{"rfilename": ".gitattributes"}, *listed]}
                    self.reply(200, json.dumps(told).encode(), Content_Type="application/json")
                return
            name, _, file = path.removeprefix("/datasets/").partition(f"/resolve/{text_files.CONVERTED}/")
            data = made.files.get(name, {}).get(file)
            if data is None:
                self.reply(404, b"", X_Error_Code="EntryNotFound")
                return
            made.fetched += [file] * (self.command == "GET")
            self.reply(200, data, ETag=f'"{hash(data):x}"', X_Repo_Commit="1" * 40)

        def do_HEAD(self):
            self.do_GET()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield made
    server.shutdown()
    server.server_close()


def test_a_data_set_of_the_hub(data_sets):
    data_sets.files["org/books"] = {
        "default/train/0000.parquet": parquet(TABLE.slice(0, 3)),
        "default/train/0001.parquet": parquet(TABLE.slice(3)),
        "README.md": b"",
    }
    found = load_texts("hf://datasets/org/books")
    assert (found.name, found.texts, found.document) == ("books", LABELLED.texts, LABELLED.document)
    data_sets.files["org/books"] |= {
        "default/test/0000.parquet": parquet(TABLE.slice(0, 2)),
        "large/test/0000.parquet": parquet(TABLE.slice(1)),
    }
    with pytest.raises(InputError, match="has 2 splits: test, train") as caught:
        load_texts("hf://datasets/org/books")
    assert caught.value.remedy == "Choose: hf://datasets/org/books/default/NAME"
    assert load_texts("hf://datasets/org/books/default/test").texts == TEXTS[:2]
    assert load_texts("hf://datasets/org/books/large").texts == TEXTS[1:]
    with pytest.raises(InputError, match=r"no 'tset' among its splits.*\nDid you mean 'test'"):
        load_texts("hf://datasets/org/books/default/tset")


def test_a_data_set_that_is_not_there_or_too_large(data_sets, monkeypatch):
    with pytest.raises(InputError, match="no data set of the hub"):
        load_texts("hf://datasets/org/none")
    data_sets.files["org/large"] = {"default/train/0000.parquet": parquet()}
    monkeypatch.setenv("KLSCALE_LIMIT_TEXT_FILE_BYTES", "100")
    with pytest.raises(InputError, match=r"hf://datasets/org/large: .* bytes"):
        load_texts("hf://datasets/org/large")
    assert data_sets.fetched == []


def test_a_hub_that_does_not_answer(data_sets, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="could not be fetched"):
        load_texts("hf://datasets/org/books")
