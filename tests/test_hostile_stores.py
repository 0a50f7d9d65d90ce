"""Stores that strangers, disks and editors made: what is wrong is named and left out, and no number comes from it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import ROOT
from klscale.errors import KlscaleError, StorageError
from klscale.inputs.texts import TextSet
from klscale.science.kl import kl
from klscale.store.store import Store
from klscale.vectors.scores import Scores

OLD = ROOT / "tests" / "data" / "store-0.1.0"
OWN, EXTERNAL = "817faccc080f", "44150156611b"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 0.1.0, sealed; not to be changed."""
    place = shutil.copytree(OLD, tmp_path_factory.mktemp("sealed") / "store")
    assert len(list(Store(place).seal())) == 17
    return Path(place)


@pytest.fixture
def place(sealed: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(sealed, tmp_path / "store"))


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def problems(place: Path) -> dict[Path, str]:
    return {Path(path): problem for path, problem in Store(place).check() if problem}


def numbers(place: Path) -> dict[str, object]:
    """Every number that a store gives, by the file that it comes from."""
    store, found = Store(place), dict[str, object]()
    for head in store.text_sets():
        try:
            texts = store.texts(head["id"])
        except KlscaleError:
            continue
        vectors = store.vectors(texts, layers=True)
        for name in vectors.names:
            row = vectors.subset([name])
            noise = row.attributes["noise_floor"].iloc[0]
            found[f"{texts.id} {name}"] = row.log_likelihood.tobytes(), repr(row.attributes.drop(columns="noise_floor"))
            found[f"{texts.id} {name} noise"] = noise
        found[f"{texts.id} texts"] = repr(
            (texts.clip, texts.bytes.tolist(), texts.document, texts.domain, texts.labels)
        )
        found |= {f"map {kept['key']}": repr(store.read_map(texts.id, kept["key"])) for kept in store.maps(texts.id)}
    distances, _ = store.weight_distances([f"files:runs/a@step{step}" for step in (1, 2, 3)])
    found |= {f"weights {place}": value for place, value in np.ndenumerate(distances)}
    exact = store.exact(OWN, "0123456789ab")
    found["exact"] = exact and json.dumps(exact)
    return found


@pytest.mark.slow
def test_every_changed_bit_is_found_and_no_number_comes_from_it(place):
    """One bit in every 151st byte of every file, and in every 7th of a head and a noise floor. Texts are changed one
    file at a time, the other files together: each of them is named."""
    whole = numbers(place)
    generator = np.random.default_rng(0)
    dense = {place / "texts" / f"{OWN}.json", next(iter(sorted((place / "noise" / OWN).iterdir())))}
    files = {path: path.read_bytes() for path in files_of(place)}
    texts = [path for path in files if path.parent.name == "texts"]
    for together in (*([path] for path in texts), [path for path in files if path not in texts]):
        steps = {path: 7 if path in dense else 151 for path in together}
        for n in range(max(-(-len(files[path]) // steps[path]) for path in together)):
            changed = {path: n * steps[path] for path in together if n * steps[path] < len(files[path])}
            for path, at in changed.items():
                data = bytearray(files[path])
                data[at] ^= 1 << int(generator.integers(8))
                path.write_bytes(data)
            found = problems(place)
            assert found, f"{together[0].name}: a changed bit of byte {changed[together[0]]} is not found"
            assert together[0] in texts or found.keys() == changed.keys(), changed
            if n % 5 == 0:
                there = {name: value for name, value in numbers(place).items() if value is not None}
                wrong = [name for name, value in there.items() if value == value and whole[name] != value]
                assert not wrong, f"bits of {changed} changed {wrong}"
            for path in changed:
                path.write_bytes(files[path])
    assert not problems(place)


def test_files_that_changed_places_are_found(place):
    for kind in ("noise", "vectors"):
        first, second, *_ = sorted((place / kind / OWN).iterdir())
        a, b = first.read_bytes(), second.read_bytes()
        first.write_bytes(b)
        second.write_bytes(a)
        assert {first, second} == {*problems(place)}
        first.write_bytes(a)
        second.write_bytes(b)
    moved = place / "noise" / EXTERNAL / first.with_suffix(".json").name
    moved.parent.mkdir()
    shutil.copy(next((place / "noise" / OWN).iterdir()), moved)
    assert {*problems(place)} == {moved}


# ------------------------------------------------------------------------------------------------- a vector, rewritten


def rewritten(path: Path, change=None, columns=None) -> None:
    """A vector's file as 0.1.0 would have written it with other metadata or values: no seal tells."""
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"klscale"])
    for name, values in (columns or {}).items():
        column = table.column_names.index(name)
        table = table.set_column(column, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    if columns:
        text, log_likelihood = table["text"].to_numpy(), table["log_likelihood"].to_numpy()
        metadata["checksum"] = Scores(text, log_likelihood, text).checksum
    metadata = {name: value for name, value in (metadata | (change or {})).items() if value != "absent"}
    pq.write_table(table.replace_schema_metadata({"klscale": json.dumps(metadata)}), path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ref": 5}, "'ref' '5'"),
        ({"ref": "a+nosuch"}, "'ref' 'a+nosuch'"),
        ({"ref": "absent"}, "no 'ref'"),
        ({"attributes": ["list"]}, "'attributes'"),
        ({"attributes": "absent"}, "no 'attributes'"),
        ({"attributes": {"step": "many"}}, "'step' 'many'"),
        ({"attributes": {"step": -1}}, "'step'"),
        ({"attributes": {"parameters": 10**400}}, "'parameters'"),
        ({"attributes": {"family": {"a": 1}}}, "'family'"),
        ({"key": "../../../../x"}, "'key'"),
        ({"key": "0123456789ab"}, "under another name"),
        ({"text_set": "0123456789ab"}, "another text set"),
        ({"convention": None}, "no 'convention'"),
        ({"convention": 3}, "'convention'"),
        ({"date": 3}, "'date'"),
        ({"skipped": "0"}, "'skipped'"),
        ({"skipped": [-1]}, "'skipped'"),
        ({"first": "all"}, "'first'"),
        ({"n_layers": 3}, "layers that it names"),
        ({"n_layers": "x"}, "'n_layers'"),
        ({"checksum": "0" * 12}, "values that it was written with"),
        ({"not_round_trip": "much"}, "'not_round_trip'"),
        ({"versions": [1]}, "'versions'"),
        ({"record": "vector/2"}, "seal"),
    ],
)
def test_a_vector_with_wrong_metadata_is_left_out_and_said(change, said, tmp_path, run, caplog):
    shutil.copytree(OLD, tmp_path / "store")
    path = next((tmp_path / "store" / "vectors" / OWN).glob("runs-a-step1-*"))
    rewritten(path, change)
    require_left_out(tmp_path / "store", path, said, run, caplog)


@pytest.mark.slow
def test_a_vector_that_is_left_out_is_so_by_every_command(tmp_path, run, caplog):
    shutil.copytree(OLD, tmp_path / "store")
    path = next((tmp_path / "store" / "vectors" / OWN).glob("runs-a-step1-*"))
    rewritten(path, {"attributes": ["list"]})
    commands = ("kl", "scale", "validate", "map", "report", "ls", "trajectory", "layers")
    require_left_out(tmp_path / "store", path, "'attributes'", run, caplog, commands)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": [*range(1, 25)]}, "texts that its text set does not have"),
        ({"text": [0, *range(23)]}, "texts twice"),
        ({"text": [-1, *range(23)]}, "before the first"),
        ({"log_likelihood": [0.5] * 24}, "above 0"),
        ({"log_likelihood": [-np.inf] * 24}, "not finite"),
        ({"log_likelihood": [-1e154] * 24}, "below -1e+12"),
        ({"n_tokens": [-1] * 24}, "negative numbers of tokens"),
        ({"log_likelihood": [None, *[-1.0] * 23]}, "'log_likelihood'"),
    ],
)
def test_a_vector_with_impossible_values_is_left_out_and_said(columns, said, tmp_path, run, caplog):
    shutil.copytree(OLD, tmp_path / "store")
    path = next((tmp_path / "store" / "vectors" / OWN).glob("runs-a-step1-*"))
    rewritten(path, columns=columns)
    require_left_out(tmp_path / "store", path, said, run, caplog)


def require_left_out(place: Path, path: Path, said: str, run, caplog, commands=("kl",)) -> None:
    """By every one of the commands, with one note that names the file; and by `check`."""
    assert said in problems(place)[path]
    assert path.name in run("check", "--store", place, status=1).output.replace("\n", "")
    for command in commands:
        caplog.clear()
        named = ("runs/a@step3",) if command == "layers" else ()
        result = run(command, *named, "--store", place, "--texts", OWN)
        assert [record.getMessage().split(" is left out: it ")[0] for record in caplog.records] == [str(path)], command
        assert said in caplog.text
        assert "runs/a@step1" not in result.stdout, command


# --------------------------------------------------------------------------------------------------- texts, rewritten


def test_texts_that_are_not_theirs_are_one_clear_error(place, run):
    head, lines = place / "texts" / f"{OWN}.json", place / "texts" / f"{OWN}.jsonl"
    known, rows = json.loads(head.read_text()), lines.read_text().splitlines()
    for name in ("record", "klscale-seal", "lines"):
        del known[name]
    other = [json.dumps({**json.loads(rows[0]), **change}) for change in
             ({"bytes": 1}, {"bytes": "66"}, {"bytes": 10**400}, {"text": 3}, {"text": "other"}, {"document": ["d0"]},
              {"more": 1}, {"document": None})]  # fmt: skip
    cases = [
        (known, [row, *rows[1:]], lines) for row in (*other, "[" * 100_000, "3", "{}", "\ud800", '{"text": "\\ud800"}')
    ]
    cases += [(known, rows[1:], lines), (known, [rows[1], rows[0], *rows[2:]], lines), (known, [], lines)]
    wrong_heads = (
        {"id": "../x/b"}, {"id": EXTERNAL}, {"n_texts": "24"}, {"n_texts": 0}, {"clip": "low"}, {"clip": 3.0},
        {"name": 3}, {"external": "no"}, {"mean_bytes": None}, {"clip": float("nan")},
    )  # fmt: skip
    cases += [({**known, **change}, rows, head) for change in wrong_heads]
    cases += [({**known, "external": True}, rows, lines)]
    for n, (about, text, wrong) in enumerate(cases):
        head.write_text(json.dumps(about))
        lines.write_text("\n".join(text), encoding="utf-8", errors="surrogatepass")
        assert wrong in problems(place), n
        for command in ("kl", "scale", "map") if n % 10 == 0 else ("kl",):
            result = run(command, "--store", place, "--texts", OWN, status=None)
            assert result.exit_code in (1, 2), n
            assert not result.stdout, n
            assert wrong.name in result.output.replace("\n", "") or wrong == head, n


def test_texts_outside_the_store_are_neither_read_nor_written(shared, tmp_path, run):
    shutil.copytree(shared / "cases" / "traversal-textset" / "store", tmp_path / "deep" / "store")
    place = tmp_path / "deep" / "store"
    for path in (place, *place.rglob("*")):
        path.chmod(0o755)
    before = {path: path.read_bytes() for path in files_of(tmp_path)}
    for command in (
        ("texts", "clip", "--value", -5),
        ("score", "nobody/nothing"),
        ("kl",),
        ("texts", "list"),
        ("check",),
    ):
        result = run(*command, "--store", place, status=None)
        assert result.exit_code in ((0,) if command == ("texts", "list") else (1, 2)), command
        assert "aaaaaaaaaaaa.json" in result.output, command
    assert {path: path.read_bytes() for path in files_of(tmp_path)} == before


@pytest.mark.parametrize("case", ["1-24", "1-83", "1-85"])
def test_damage_that_a_store_of_0_1_0_shows(case, shared, tmp_path, run):
    place = copied(shared / "cases" / "damaged-store" / case, tmp_path)
    (wrong,) = (path for path in problems(place))
    output = run("kl", "--store", place, status=None).output.replace("\n", "")
    assert wrong.name in output
    assert "mamba-2.8b" not in output.replace(wrong.name, "") or case != "1-85"


@pytest.mark.parametrize("case", ["1-13", "1-175"])
def test_damage_that_only_a_seal_shows(case, shared, tmp_path, run):
    """Two lines swapped, a digit of the clip: check says that nothing can be seen; after the sealing of the whole store
    the same damage is named, and no KL is printed."""
    place = copied(shared / "cases" / "damaged-store" / case, tmp_path)
    assert "have no seal" in run("check", "--store", place).output
    whole = copied(shared / "cases" / "hostile-vector" / "attributes_list", tmp_path / "whole")
    run("check", "--seal", "--store", whole)
    for name in ("7b4b14b27593.json", "7b4b14b27593.jsonl"):
        old, new = (root / "texts" / name for root in (place, whole))
        if name.endswith("l"):
            shutil.copy(old, new)
        else:
            clip = str(json.loads(old.read_text())["clip"])
            new.write_text(new.read_text().replace(str(json.loads(new.read_text())["clip"]), clip))
    assert [path.name[:12] for path in problems(whole)] == ["7b4b14b27593"] or len(problems(whole)) > 1
    result = run("kl", "--store", whole, status=1)
    assert not result.stdout
    assert "7b4b14b27593.json" in result.output


def copied(case: Path, tmp_path: Path) -> Path:
    shutil.copytree(case, tmp_path / "store")
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        path.chmod(0o755)
    return tmp_path / "store"


# ------------------------------------------------------------------------------------------------- no files, and links


def test_what_is_no_file_of_the_store_is_not_read(place, tmp_path):
    vectors = place / "vectors" / OWN
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copy(next(vectors.glob("org-short-*")), outside / "secret.parquet")
    fifo, link, folder, nothing = (vectors / f"{name}-0123456789ab.parquet" for name in ("fifo", "link", "dir", "none"))
    os.mkfifo(fifo)
    link.symlink_to(outside / "secret.parquet")
    folder.mkdir()
    nothing.symlink_to(outside / "nothing")
    device = vectors / "dev-0123456789ab.parquet"
    device.symlink_to("/dev/zero")
    assert {*problems(place)} == {fifo, link, folder, nothing, device}
    store = Store(place)
    assert len(store.entries(OWN)) == 5
    assert {Path(path) for path in store.left_out} >= {fifo, link, folder, device}


def test_nothing_is_written_through_a_link_that_leads_outside(place, tmp_path, texts):
    outside = tmp_path / "outside"
    outside.mkdir()
    (place / "vectors" / texts.id).symlink_to(outside)
    scores = Scores(np.arange(40), -np.ones(40), np.ones(40, dtype=int))
    known = {"ref": "a", "key": "0" * 12, "attributes": {}, "convention": "any"}
    with pytest.raises(StorageError, match="a link that leads outside the store"):
        Store(place).write(texts, scores, known)
    assert not list(outside.iterdir())


def test_claims_of_strangers_do_not_stop_the_work(place):
    claims = place / "partial" / OWN
    claims.mkdir(parents=True)
    for n, told in enumerate(('{"key": "k"}', "[" * 100_000, '{"key": "k", "owner": "o", "host": "h", "pid": "x"}')):
        (claims / f"k.{n}.claim").write_text(told)
    future = {"key": "k", "owner": "o", "host": "elsewhere", "pid": 10**400, "beat": 1e300}
    (claims / "k.9.claim").write_text(json.dumps(future))
    claim = Store(place).claim(OWN, "k")
    assert claim is not None
    claim.release()
    assert not list(claims.iterdir())


def test_a_clip_and_labels_can_be_changed_and_are_whole_at_every_step(place, monkeypatch):
    """Whenever the process is killed between two writes, the texts read, with the old labels or the new."""
    from klscale.store.files import Files

    store = Store(place)
    known = store.texts(OWN)
    new = TextSet.from_texts(known.name, known.texts, document=known.document, clip=-50.0)
    write, killed = Files.write, 0
    for stop in range(4):
        left = [stop]

        def until_killed(self, path, data, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(self, path, data)

        monkeypatch.setattr(Files, "write", until_killed)
        try:
            store.put_texts(new)
        except KeyboardInterrupt:
            killed += 1
        monkeypatch.setattr(Files, "write", write)
        found = Store(place).texts(OWN)
        assert (found.clip, found.domain) in {(-90.0, known.domain), (-90.0, None), (-50.0, None)}
        assert not problems(place)
        if stop < 3:
            store.put_texts(known)
    assert (killed, Store(place).texts(OWN).clip) == (3, -50.0)


@pytest.mark.slow
def test_check_ends_as_it_should_every_time(place):
    """A reader's thread that is alive at the end takes the interpreter down."""
    import subprocess
    import sys

    for _ in range(3):
        command = [sys.executable, "-m", "klscale", "check", "--json", "--store", str(place)]
        found = subprocess.run(command, capture_output=True, text=True)
        assert (found.returncode, found.stderr) == (0, "")
        assert len(json.loads(found.stdout)) == 19


def test_a_noise_floor_is_that_of_its_own_vector(place):
    store = Store(place)
    entry = store.entries(OWN)[-1]
    values = store.scores(entry).log_likelihood
    floor = kl(values, values + 0.1 * (-1.0) ** np.arange(len(values)), store.texts(OWN).bytes[-len(values) :])
    store.write_noise_floor(OWN, entry.key, floor)
    assert Store(place).noise_floor(OWN, entry.key) == floor
