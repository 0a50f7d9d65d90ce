"""Inputs that begin as good ones and are then broken: bytes, tokens, values, types and nesting. A batch of them is read
by commands in a child, so that a crash of a library is seen too."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import klscale.cli
from attacks import HANG, HANG_CPU_S, OLD, TRACEBACK, Tally, wait
from klscale.store import records
from klscale.store.store import Store

BATCH = 25
MEMORY = 6 << 30
"""Bytes that a child may take beyond those of its parent."""

VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**64,
    10**400,
    -(10**400),
    1e308,
    -1e308,
    1e-320,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\ud800",
    "a\x00b",
    "\x1b[2J\r\n",
    "\u202e",
    "=1+1",
    "../../../x",
    "/etc/passwd",
    "~nosuch/x",
    "a::b",
    "mock://1",
    "mock://" + "9" * 400,
    "http://[",
    "x" * 70_000,
    "1e400B",
    "9" * 5000,
    "NaN",
    "{x}",
    "{step}",
    "{step:>99999999}",
    "1..1000000000000",
    "0..9/0",
    [],
    {},
    [[]],
    {"a": {}},
    [1, "a", None],
    {"": ""},
]
TOKENS = [
    b"9" * 400,
    b"-1e400",
    b"1e-400",
    b"NaN",
    b"-inf",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\x00",
    b"\x1b[2J",
    b'"\\ud800"',
    b"[" * 5000,
    b'{"a":' * 5000,
    b"=1+1",
    b"../../",
    b"\r",
    b"\n",
    b"\n\n",
    b'"',
    b'""',
    b",",
    b";",
    b"\t",
    b"'",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/object/apply:os.system",
    b"{step}",
    b"- ",
    b": ",
    b"#",
    b"%",
    b"@",
    b"+nf4",
    b"~",
    b"::",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xe2\x80\xae",
    b"sep=;",
    b"Total",
    b"1,234",
    b"1.234,5",
    b"-0",
    b"1e5",
    b"2020-01-01",
]


def broken(data: bytes, generator: random.Random, others: list[bytes]) -> bytes:
    """These bytes after one to four accidents."""
    made = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4])):
        at = generator.randrange(len(made) + 1)
        end = min(len(made), at + generator.choice([1, 2, 8, 64]))
        how = generator.randrange(7)
        if how == 0 and at < len(made):
            made[at] ^= 1 << generator.randrange(8)
        elif how == 1:
            del made[at:end]
        elif how == 2:
            made[at:at] = made[at:end]
        elif how == 3:
            made[at:end] = generator.choice(TOKENS)
        elif how == 4:
            made[at:at] = generator.choice(TOKENS)
        elif how == 5:
            del made[at:]
        else:
            other = generator.choice(others)
            made[at:] = other[generator.randrange(len(other) + 1) :]
    return bytes(made)


def changed(value: Any, generator: random.Random) -> Any:
    """A JSON value with one to three of its parts replaced, dropped, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(generator.choice([1, 1, 2, 3])):
        places = [*_places(value)]
        if not places:
            return generator.choice(VALUES)
        within, key = generator.choice(places)
        how = generator.randrange(8)
        if how == 0:
            del within[key]
        elif how == 1 and isinstance(within, dict):
            within[str(generator.choice(VALUES))[:90]] = within.pop(key)
        elif how == 2 and isinstance(within, list):
            within.append(within[key])
        elif how == 3:
            nested: Any = within[key]
            for _ in range(generator.choice([1, 30, 150])):
                nested = [nested]
            within[key] = nested
        else:
            within[key] = copy.deepcopy(generator.choice(VALUES))
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    items = [*value.items()] if isinstance(value, dict) else [*enumerate(value)] if isinstance(value, list) else []
    return [(value, key) for key, _ in items] + [place for _, part in items for place in _places(part)]


# -------------------------------------------------------------------------------------------------------------- seeds

LINES = [
    {"text": f"a text that is number {n} – grün", "domain": "ab"[n % 2], "document": f"d{n // 2}"} for n in range(8)
]
WIDE = {
    "id": [f"t{n}" for n in range(24)],
    "bytes": [40 + n for n in range(24)],
    "document": [f"d{n // 2}" for n in range(24)],
    "org/a-1b@step100": [-30.5 - n for n in range(24)],
    "org/a-1b@step200": [-31.25 - 1.5 * n for n in range(24)],
    "b-seed3": [-36.0 - 0.5 * n for n in range(24)],
}
SUITE = {
    "texts": "pile-10k",
    "models": [
        {"name": "org/m", "revisions": {"pattern": "step{step}", "step": [0, 1, 2, "1000..3000/1000"]},
         "family": "m", "parameters": "410M", "layers": False},
        {"name": "org/m-seed{seed}", "seed": [1, 2, 5], "quantize": ["int8", "nf4"]},
        {"name": "mock://7", "parent": "mock://1", "type": "mock"},
        "gpt2",
    ],
}  # fmt: skip
ATTRIBUTES = "model,type,family,parameters,seed,step\norg/a-1b@step100,x,y,1B,1,100\nb-seed3,z,,6.9B,3,\n"
PICKLES = [
    {"a": np.arange(-30.0, -6.0), "b": np.arange(-60.0, -12.0, 2.0)},
    [
        {
            "model_name": "a",
            "log-likelihood-10k": np.arange(-30.0, -6.0),
            "model_type": "x",
            "model_size": 1.5,
            "tags": ["base_model:finetune:b"],
        }
    ],
]
REFERENCES = [
    "org/m@step1000",
    "gpt2+nf4",
    "gpt2%bfloat16",
    "m:x.gguf",
    "mock://7?shift=0.1",
    "gpt2#3",
    "./dir",
    "a%20b",
]


def _csv(table: dict[str, list[Any]]) -> bytes:
    rows = zip(*table.values(), strict=True)
    return "\n".join([",".join(table), *(",".join(map(str, row)) for row in rows)]).encode()


def _long() -> bytes:
    rows = [f"{model},{n},{40 + n},{-30.5 - n * (1 + k)}" for k, model in enumerate("ab") for n in range(24)]
    return "\n".join(["model,text_id,bytes,log_likelihood", *rows]).encode()


def _parquet(table: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _arrow(table: Any) -> bytes:
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return file.getvalue()


def _retyped(generator: random.Random) -> bytes:
    """A Parquet table in which some columns have other types, or other names."""
    made = {}
    for name, values in WIDE.items():
        cells = pa.array(values)
        if generator.random() < 0.3:
            cells = generator.choice(
                [
                    lambda c: c.cast(pa.string()),
                    lambda c: pa.nulls(len(c)),
                    lambda c: pa.array([[1.0]] * len(c)),
                    lambda c: pa.array([b"\xff"] * len(c)),
                    lambda c: pa.array([{"a": 1}] * len(c)),
                    lambda c: pa.array([True] * len(c)),
                    lambda c: c.dictionary_encode(),
                    lambda c: pa.array([float("nan"), *[-1e308] * (len(c) - 1)]),
                    lambda c: pa.array([2**62] * len(c)),
                    lambda c: pa.array([0] * len(c), pa.timestamp("ns")),
                ]
            )(cells)
        made[
            name if generator.random() < 0.9 else str(generator.choice(VALUES)).encode("utf-8", "replace").decode()
        ] = cells
    return _parquet(pa.table(made))


Input = tuple[list[str], dict[str, bytes]]
"""Arguments of a command, and the files that it finds."""


def _text_file(generator: random.Random) -> Input:
    lines = "".join(json.dumps(line) + "\n" for line in LINES)
    if generator.random() < 0.5:
        lines = "".join(json.dumps(changed(line, generator)) + "\n" for line in LINES)
    data = lines.encode("utf-8", "replace")
    ending = generator.choice(
        [".jsonl", ".jsonl", ".txt", ".jsonl.gz", ".jsonl.zip", ".parquet", ".jsonl.xz", ".jsonl.zst", ".csv", ".arrow"]
    )
    if ending == ".csv":
        data = _csv({key: [line[key] for line in LINES] for key in ("text", "domain", "document")})
        data = broken(data, generator, [data])
    if generator.random() < 0.6:
        data = broken(data, generator, [data])
    if ending == ".parquet":
        data = _parquet(pa.Table.from_pylist(LINES))
    elif ending == ".jsonl.gz":
        data = gzip.compress(data)
    elif ending == ".jsonl.zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.jsonl", data)
        data = file.getvalue()
    elif ending == ".jsonl.zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    elif ending == ".arrow":
        data = _arrow(pa.Table.from_pylist(LINES))
    if ending not in (".jsonl", ".txt", ".csv") and generator.random() < 0.7:
        data = broken(data, generator, [data])
    name = "x" if ending == ".arrow" else "x" + ending
    command = generator.choice([["texts", "info", name], ["score", "mock://1", "mock://2", "--texts", name]])
    if generator.random() < 0.2:
        command = ["texts", "build", name, "--out", "y.jsonl", "--min-bytes", "0"]
    if ending == ".arrow":
        state = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
        if generator.random() < 0.3:
            state = broken(state, generator, [state])
        return command, {"x/state.json": state, "x/data.arrow": data}
    return command, {name: data}


def _table(generator: random.Random) -> Input:
    if generator.random() < 0.3:
        data, name = _retyped(generator), "x.parquet"
        if generator.random() < 0.3:
            data = broken(data, generator, [data])
    else:
        seeds = [_csv(WIDE), _long()]
        data, name = broken(generator.choice(seeds), generator, seeds), "x.csv"
    options = generator.choice([[], ["--id", "id"], ["--force"], ["--negate", "--force"], ["--duplicates", "number"]])
    return ["import", name, *options], {name: data}


def _attribute_file(generator: random.Random) -> Input:
    data = broken(ATTRIBUTES.encode(), generator, [ATTRIBUTES.encode(), _csv(WIDE)])
    return ["import", "x.csv", "--attributes", "a.csv"], {"x.csv": _csv(WIDE), "a.csv": data}


def _pickle(generator: random.Random) -> Input:
    value = generator.choice(PICKLES)
    if generator.random() < 0.4:
        value = changed(value, generator) if isinstance(value, list) else {**value, "c": generator.choice(VALUES)}
    data = pickle.dumps(value, generator.randrange(6))
    if generator.random() < 0.8:
        data = broken(data, generator, [data])
    lines = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(24)).encode()
    return ["import", "x.pkl", "--texts", "t.jsonl", "--force"], {"x.pkl": data, "t.jsonl": lines}


def _suite(generator: random.Random) -> Input:
    suite = changed(SUITE, generator) if generator.random() < 0.7 else SUITE
    data = yaml.safe_dump(suite, allow_unicode=False).encode("utf-8", "replace")
    if generator.random() < 0.5:
        data = broken(data, generator, [data])
    lines = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    return ["score", "--suite", "s.yaml", "--dry-run", "--texts", "t.jsonl"], {"s.yaml": data, "t.jsonl": lines}


def _reference(generator: random.Random) -> Input:
    seeds = [reference.encode() for reference in REFERENCES]
    name = broken(generator.choice(seeds), generator, seeds)[:300].decode("utf-8", "surrogateescape").replace("\0", "")
    lines = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    command = generator.choice([["score", "--dry-run"], ["compare", "mock://1"], ["texts", "info"], ["rm"], ["layers"]])
    more = [] if command[0] in ("texts", "rm") else ["--texts", "t.jsonl"]
    if generator.random() < 0.1:
        return ["kl", "--store", name], {"t.jsonl": lines}
    return [*command, *more, "--", name], {"t.jsonl": lines}


_RECORDS = {"texts": "texts", "noise": "noise", "exact": "exact"}


def _record(generator: random.Random) -> Input:
    """A store with one record that somebody wrote anew, sealed or not."""
    files = {str(path.relative_to(OLD)): path.read_bytes() for path in sorted(OLD.rglob("*")) if path.is_file()}
    name = generator.choice(
        [name for name in files if not name.endswith(".jsonl")] + [n for n in files if "texts" in n]
    )
    data, kind = files[name], name.split("/")[0]
    if generator.random() < 0.3:
        data = broken(data, generator, [*files.values()])
    elif name.endswith(".json"):
        record = changed(json.loads(data), generator)
        sealed = isinstance(record, dict) and generator.random() < 0.7
        data = records.to_json(_RECORDS[kind], record) if sealed else json.dumps(record).encode()
    elif name.endswith(".jsonl"):
        data = b"\n".join(json.dumps(changed(json.loads(line), generator)).encode() for line in data.splitlines())
    else:
        table = pq.read_table(pa.BufferReader(data))
        metadata = changed(json.loads(table.schema.metadata[b"klscale"]), generator)
        if not isinstance(metadata, dict):
            metadata = {"ref": metadata}
        if generator.random() < 0.4:
            n = generator.randrange(table.num_columns)
            cells = generator.choice(
                [
                    pa.nulls(table.num_rows),
                    pa.array(["x"] * table.num_rows),
                    pa.array([float("nan")] * table.num_rows),
                    pa.array([[1]] * table.num_rows),
                ]
            )
            table = table.set_column(n, table.column_names[n], cells)
        sealed_as = {"vectors": "vector", "weights": "weights", "maps": "map"}[kind]
        data = records.to_parquet(sealed_as, table, _without_surrogates(metadata))
    files[name] = data
    command = generator.choice(
        [
            "check",
            "kl --texts t",
            "ls",
            "scale --texts t",
            "map --texts t",
            "check --seal",
            "texts clip t",
            "texts list",
            "trajectory --texts t",
            "kl --texts 44150156611b",
        ]
    )
    text_set = generator.choice(["817faccc080f", "44150156611b"])
    words = [text_set if word == "t" else word for word in command.split()]
    return [*words, "--store", "old"] if words[:2] != ["texts", "list"] else ["ls", "--store", "old"], {
        f"old/{path}": content for path, content in files.items()
    }


def _without_surrogates(value: Any) -> Any:
    """The same JSON value, as the metadata of Parquet can hold it."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


KINDS: dict[str, Callable[[random.Random], Input]] = {
    "texts": _text_file,
    "tables": _table,
    "attributes": _attribute_file,
    "pickles": _pickle,
    "suites": _suite,
    "references": _reference,
    "records": _record,
}


# ------------------------------------------------------------------------------------------------------------ batches


def fuzz(
    place: Path,
    budget: int,
    seed: int,
    *,
    kinds: list[str] | None = None,
    said: Callable[[str], object] = lambda _: None,
) -> Tally:
    """Have commands read so many broken inputs."""
    tally, place = Tally(), place / "fuzz"
    for first in range(seed * 10**7, seed * 10**7 + budget, BATCH):
        for kind, what in _batch(place, [*range(first, min(first + BATCH, seed * 10**7 + budget))], kinds or [*KINDS]):
            if kind == "tries":
                tally.tries += 1
            else:
                tally.add(kind, what)
                said(f"{kind}: {what}")
    return tally


def made(number: int, kinds: list[str]) -> tuple[str, Input]:
    """The input of this number."""
    generator = random.Random(number)
    kind = generator.choice(kinds)
    return kind, KINDS[kind](generator)


def _batch(place: Path, numbers: list[int], kinds: list[str]) -> list[tuple[str, str]]:
    shutil.rmtree(place, ignore_errors=True)
    (place / "work").mkdir(parents=True)
    told = place / "told"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            _read(place, numbers, kinds, told)
        finally:
            os._exit(0)
    status = wait(pid)
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.exists() else []
    found = [tuple(json.loads(line)) for line in lines]
    done = sum(kind == "tries" for kind, _ in found)
    if done < len(numbers):  # the child is gone
        kind = HANG if status is None or os.WTERMSIG(status) == signal.SIGXCPU else TRACEBACK
        found += [("tries", ""), (kind, f"input {numbers[done]}: the process is gone, {status}")]
        found += _batch(place, numbers[done + 1 :], kinds) if numbers[done + 1 :] else []
    return found


class _HangError(BaseException):
    pass


def _alarm(*_: object) -> None:
    raise _HangError


def _read(place: Path, numbers: list[int], kinds: list[str], told: Path) -> None:
    work = place / "work"
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    os.environ.update(KLSCALE_CACHE=str(place / "cache"), HF_HUB_OFFLINE="1", HF_HOME=str(place / "hf"))
    signal.signal(signal.SIGPROF, _alarm)
    with told.open("a", encoding="utf-8", errors="backslashreplace") as file:
        for number in numbers:
            os.chdir(place)
            shutil.rmtree(work)
            work.mkdir()
            os.chdir(work)
            kind, (arguments, files) = made(number, kinds)
            for name, data in files.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                (work / name).write_bytes(data)
            for kind_of, what in _called(place, work, arguments):
                file.write(json.dumps([kind_of, f"{kind} {number}: {what}"]) + "\n")
            file.write(json.dumps(["tries", ""]) + "\n")
            file.flush()


def _called(place: Path, work: Path, arguments: list[str]) -> list[tuple[str, str]]:
    """What is wrong with a command, and with those that show what it has kept."""
    found = []
    for words in (arguments, ["ls"], ["kl", "--json"]):
        if words is not arguments and not (work / "klscale-store").exists():
            continue
        output = io.StringIO()
        signal.setitimer(signal.ITIMER_PROF, HANG_CPU_S)
        try:
            with redirect_stdout(output), redirect_stderr(output):
                klscale.cli.app(words, prog_name="klscale")
        except SystemExit as end:
            if end.code not in (0, 1, 2):
                found.append((TRACEBACK, f"{words} ends with {end.code}"))
        except _HangError:
            found.append((HANG, str(words)))
        except BaseException:
            found.append((TRACEBACK, f"{words}: {traceback.format_exc()[-1800:]}"))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if set(output.getvalue()) & {"\x1b", "\x07", "\x9b", "\u202e"}:
            found.append(("orders to the terminal", f"{words}: {output.getvalue()[:300]!r}"))
    if (work / "klscale-store").exists():
        wrong = [problem for _, problem in Store("klscale-store").check() if problem]
        found += [("silent changes", f"{arguments} kept a file that {problem}") for problem in wrong]
    outside = {path.name for path in place.iterdir()} - {"work", "told", "cache", "hf"}
    return found + [("writes outside", f"{arguments}: {outside}")] * bool(outside)
