"""What an attacker, a disk and a scheduler do to klscale: commands that are stopped at a file event, damaged files,
hostile stores and fuzzed inputs. Tests run a few of each with a seed; `python benchmarks/attack.py` runs thousands.

Commands run in children that are forked from this process, which has loaded what they need: about 0.1 s each. Nothing
here knows how fast the machine is; a hang is 20 s of work of the processor, or ten minutes without an end.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import klscale.cli
from klscale.errors import KlscaleError
from klscale.store import records
from klscale.store.files import SEAL
from klscale.store.store import Store
from klscale.sweep import score as sweeps

HANG_CPU_S, HANG_S = 20, 600
TRACEBACK, HANG = "traceback", "hang"
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""Audit events of the interpreter that change files; `open` where it is for writing."""
OLD = Path(__file__).parent / "data" / "store-0.1.0"


@dataclass
class Ended:
    """How a command ended: its exit status (None where it was killed), what it printed, and how many file events it
    came to. `wrong` names a traceback or a hang."""

    status: int | None
    output: str
    events: int
    wrong: str = ""


@dataclass
class Tally:
    """What an attack found: how many tries, and each kind of failure with the tries that show it."""

    tries: int = 0
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, what: str) -> None:
        self.found.setdefault(kind, []).append(what)

    def count(self, kind: str) -> int:
        return len(self.found.get(kind, ()))


# ---------------------------------------------------------------------------------------------------------- commands


def load() -> None:
    """Load what commands need, so that children need not."""
    import matplotlib.figure  # noqa: F401
    import openTSNE  # noqa: F401
    import pandas  # noqa: F401
    import rich.progress  # noqa: F401
    from typer.testing import CliRunner

    import klscale.show.pages
    import klscale.show.reports
    import klscale.sources.mock
    import klscale.studies.maps
    import klscale.studies.verbs.map
    import klscale.studies.verbs.score
    import klscale.vectors.imports

    CliRunner().invoke(klscale.cli.app, ["ls", "--store", "none"])  # what typer loads with the first command


def run(arguments: Sequence[object], place: Path, *, stop: str = "", at: int = 0) -> Ended:
    """Run a command in a directory, in a child of its own. `stop` it at the file event number `at`: by `kill`, by
    `term`, or by a disk that is `full` from then on."""
    counts, told = os.pipe()
    printed = Path(tempfile.gettempdir()) / f"klscale-printed-{os.getpid()}"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = _child([*map(str, arguments)], place, printed, told, stop, at)
        finally:
            os._exit(status)
    os.close(told)
    waited = wait(pid)
    events = int.from_bytes(os.read(counts, 8), "little") if waited is not None else 0
    os.close(counts)
    output = printed.read_text(encoding="utf-8", errors="replace")
    printed.unlink()
    if waited is None or (os.WIFSIGNALED(waited) and os.WTERMSIG(waited) == signal.SIGXCPU):
        return Ended(None, output, events, HANG)
    if os.WIFSIGNALED(waited):
        killed = stop == "kill" and os.WTERMSIG(waited) == signal.SIGKILL
        return Ended(None, output, events, "" if killed else f"{TRACEBACK}: signal {os.WTERMSIG(waited)}")
    status = os.WEXITSTATUS(waited)
    bad = status not in (0, 1, 2, 130) or "Traceback (most recent" in output
    return Ended(status, output, events, f"{TRACEBACK}: {output[-1500:]}" if bad else "")


def wait(pid: int) -> int | None:
    """The status of a child; None where it hangs, and is killed."""
    started, pause = time.monotonic(), 0.001
    while time.monotonic() - started < HANG_S:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _child(arguments: list[str], place: Path, printed: Path, told: int, stop: str, at: int) -> int:
    file = os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    faulthandler.enable(2)
    resource.setrlimit(resource.RLIMIT_CPU, (HANG_CPU_S, HANG_CPU_S + 5))
    os.chdir(place)
    os.environ.update(KLSCALE_CACHE=str(place.parent / "cache"), HF_HUB_OFFLINE="1", HF_HOME=str(place.parent / "hf"))
    os.environ.pop("KLSCALE_STORE", None)
    sweeps.KEEP_EVERY_S = 0.0  # unfinished work is kept after every block
    events = _watch(stop, at)
    sys.argv = ["klscale", *arguments]
    try:
        klscale.cli.main()
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        events(told)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()


def _watch(stop: str, at: int) -> Callable[[int], object]:
    """Count the file events of this process, and stop it at one of them."""
    count, main = 0, os.getpid()

    def hook(name: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if name not in CHANGES or os.getpid() != main:
            return
        if name == "open" and not (isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        count += 1
        if stop == "kill" and count == at:
            if name == "os.rename" and at % 2:  # what is renamed may not be on the disk yet
                with contextlib.suppress(OSError):
                    os.truncate(details[0], Path(details[0]).stat().st_size // 2)
            os.kill(main, signal.SIGKILL)
        if stop == "term" and count == at:
            os.kill(main, signal.SIGTERM)
        if stop == "full" and count >= at and name in ("open", "os.mkdir", "os.rename") and details[0] != os.devnull:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(details[0]))

    if stop or at == 0:
        sys.addaudithook(hook)
    return lambda told: os.write(told, count.to_bytes(8, "little"))


def tree(place: Path) -> dict[str, str]:
    """Every file under a directory with a digest of what it holds."""
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(place.rglob("*"))
        if not (path.is_symlink() and not path.exists())
    }


# ------------------------------------------------------------------------------------------------------------- stores


def contents(place: Path) -> dict[str, str]:
    """Every number of a store, by what it is of; files that are left out give none."""
    store, found = Store(str(place)), dict[str, str]()
    for head in store.text_sets():
        try:
            texts = store.texts(head["id"])
        except KlscaleError:
            continue
        labels = (texts.name, texts.clip, texts.bytes.tolist(), texts.domain, texts.document, texts.labels, texts.texts)
        found[f"texts {texts.id}"] = repr(labels)
        for entry in store.entries(texts.id):
            kept = store.read_vector(entry.path, texts.id)[0]
            known = {name: entry.metadata.get(name) for name in ("ref", "attributes", "convention", "first", "skipped")}
            found[f"vector {texts.id} {entry.key}"] = f"{kept.checksum} {json.dumps(known, sort_keys=True)}"
            noise = store.noise_floor(texts.id, entry.key)
            if noise is not None:
                found[f"noise {texts.id} {entry.key}"] = repr(noise)
        for kept_map in store.maps(texts.id):
            read = store.read_map(texts.id, kept_map["key"])
            columns = {} if read is None else {name: [*map(str, values)] for name, values in read[0].items()}
            found[f"map {texts.id} {kept_map['key']}"] = json.dumps(columns)
        for path in store.files.list("exact", texts.id, suffix=".json"):
            key = path.rsplit("/", 1)[-1].removesuffix(".json")
            if (record := store.exact(texts.id, key)) is not None:
                found[f"exact {texts.id} {key}"] = json.dumps(record, sort_keys=True)
    for path in store.files.list("weights", suffix=".parquet"):
        distances, about = store._weight_distances(path)
        if about:
            found[f"weights {about['identity']}"] = json.dumps([distances, about["n_parameters"]], sort_keys=True)
    return found


def problems(place: Path) -> dict[str, str]:
    """What `check` says of each file that is not right."""
    return {path: problem for path, problem in Store(str(place)).check() if problem}


def left_over(place: Path) -> list[str]:
    """Temporary files, claims and unfinished work."""
    return [
        str(path) for path in place.rglob("*") if path.is_file() and (path.name[0] == "." or "partial" in path.parts)
    ]


# -------------------------------------------------------------------------------------------------------------- kills


def prepare(place: Path) -> None:
    """A directory with what the commands of `SCENARIOS` need."""
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    words = ["tree", "grün", "日本", "house", "and", "the", "runs"]
    lines = [" ".join(generator.choice(words, size=12)) + f" {n}" for n in range(30)]
    write = (place / "mine.jsonl").write_text
    write("".join(json.dumps({"text": line, "document": str(n // 2)}) + "\n" for n, line in enumerate(lines)))
    (place / "book.txt").write_text("Once upon a time. " * 300)
    values = -60 - 20 * generator.random((40, 6))
    head = "id,bytes,document," + ",".join(f"org/model-{n}@step{n}" for n in range(6))
    rows = (f"t{n},70,{n // 2}," + ",".join(f"{value:.6f}" for value in row) for n, row in enumerate(values))
    (place / "mine.csv").write_text("\n".join([head, *rows]) + "\n")
    shutil.copytree(OLD, place / "old")


SCORE = [
    "score",
    "mock://1?noise=0.01",
    "mock://2?noise=0.01",
    "mock://1?shift=0.1&noise=0.01",
    "--texts",
    "mine.jsonl",
]
IMPORT = ["import", "mine.csv", "--id", "id"]
SCENARIOS: dict[str, tuple[list[list[str]], list[str]]] = {
    "score": ([], [*SCORE, "--batch-tokens", "700"]),
    "import": ([], IMPORT),
    "map": ([IMPORT], ["map", "--out", "x.csv"]),
    "texts clip": ([IMPORT], ["texts", "clip"]),
    "texts build": ([], ["texts", "build", "book.txt", "--out", "x.jsonl", "--min-bytes", "9", "--max-bytes", "90"]),
    "rm": ([IMPORT], ["rm", "org/model-1@step1", "org/model-3@step3"]),
    "check --seal": ([], ["check", "--seal", "--store", "old"]),
    "kl --out": ([IMPORT], ["kl", "--out", "x.parquet"]),
    "compact": ([IMPORT, ["compact"], IMPORT], ["compact"]),
    "compact --undo": ([IMPORT, ["compact"]], ["compact", "--undo"]),
}
"""What is attacked: the commands before it, and the one that is stopped."""


@dataclass(frozen=True)
class Stop:
    """One way to stop one command: at which of its file events."""

    scenario: str
    how: str
    at: int


class Kills:
    """Commands that are stopped. `one` runs a stop and tells what is wrong afterwards."""

    def __init__(self, place: Path) -> None:
        self.place, self._whole, self._events = place, dict[str, Any](), dict[str, int]()
        for name, (before, command) in SCENARIOS.items():
            start, whole = place / name / "start" / "work", place / name / "whole" / "work"
            prepare(start)
            for arguments in before:
                assert run(arguments, start).status == 0
            shutil.copytree(start, whole)
            ended = run(command, whole)
            assert ended.status == 0, ended.output
            self._events[name] = ended.events
            self._whole[name] = self._state(whole)

    def stops(self, seed: int) -> Iterator[Stop]:
        """Every stop of every command, in a random order; then again with another."""
        generator = random.Random(seed)
        every = [
            Stop(name, how, at)
            for name, events in self._events.items()
            for how in ("kill", "term", "full")
            for at in range(1, events + 1)
        ]
        while True:
            generator.shuffle(every)
            yield from every

    def one(self, stop: Stop) -> list[tuple[str, str]]:
        """(kind, what) of everything that is wrong after a stop, and after the same command once more."""
        name, what = stop.scenario, str(stop)
        base = self.place / "now"
        shutil.rmtree(base, ignore_errors=True)
        work = base / "work"
        shutil.copytree(self.place / name / "start" / "work", work)
        (base / "canary").write_text("outside")
        vectors = {key for key in self._state(work)["contents"] if key.startswith("vector")}
        wrong: list[tuple[str, str]] = []

        def note(ended: Ended) -> None:
            if ended.wrong:
                wrong.append((ended.wrong.split(":")[0], f"{what}: {ended.wrong}"))

        command = SCENARIOS[name][1]
        note(run(command, work, stop=stop.how, at=stop.at))
        after = self._state(work)
        allowed = vectors - {key for key in vectors if name == "rm"}
        wrong += [("vectors lost", f"{what}: {key}") for key in allowed - after["contents"].keys()]
        wrong += [("silent changes", f"{what}: {path} {problem}") for path, problem in after["problems"].items()]
        wrong += [
            ("silent changes", f"{what}: {output} is half")
            for output, digest in after["outputs"].items()
            if digest not in (None, self._whole[name]["outputs"][output])
        ]
        again = run(command, work)
        note(again)
        if name != "rm" and again.status != 0:
            wrong.append(("silent changes", f"{what}: the same command ends with {again.status}: {again.output}"))
        last = self._state(work)
        if not again.events:  # void claims and temporary files are cleared by the next command that writes
            last["left"] = {path: what for path, what in last["left"].items() if path.endswith(".parquet")}
        if last != self._whole[name]:
            differs = [f"{part}: {_difference(last[part], self._whole[name][part])}" for part in last]
            wrong.append(("vectors lost" if "lacks vector" in str(differs) else "silent changes", f"{what}: {differs}"))
        outside = {path.name for path in base.iterdir()} - {"work", "canary", "cache", "hf"}
        if outside or (base / "canary").read_text() != "outside":
            wrong.append(("writes outside", f"{what}: {outside}"))
        return wrong

    @staticmethod
    def _state(work: Path) -> dict[str, dict[str, Any]]:
        stores = [work / name for name in ("klscale-store", "old") if (work / name).exists()]
        outputs = ("x.csv", "x.jsonl", "x.parquet")
        return {
            "contents": {key: value for store in stores for key, value in contents(store).items()},
            "problems": {key: value for store in stores for key, value in problems(store).items()},
            "left": dict.fromkeys((path[len(str(work)) :] for store in stores for path in left_over(store)), "left"),
            "outputs": {name: tree(work).get(name) for name in outputs},
            "beside": dict.fromkeys((path.name for path in work.glob(".klscale*")), "left"),
        }


def _difference(now: dict[str, Any], whole: dict[str, Any]) -> str:
    lacks = [f"lacks {key}" for key in whole.keys() - now.keys()]
    more = [f"has {key}" for key in now.keys() - whole.keys()]
    return str(lacks + more + [f"changed {key}" for key in now.keys() & whole.keys() if now[key] != whole[key]])


def kills(place: Path, budget: int, seed: int, *, said: Callable[[str], object] = lambda _: None) -> Tally:
    """Stop commands so many times."""
    tally, attack = Tally(), Kills(place)
    for stop in attack.stops(seed):
        if tally.tries == budget:
            return tally
        tally.tries += 1
        for kind, what in attack.one(stop):
            tally.add(kind, what)
            said(what)
    raise AssertionError


# ------------------------------------------------------------------------------------------------------------- damage

HOW = ("flip", "cut", "zeros", "lose", "add", "swap", "delete", "directory", "link", "retype")
"""What happens to a file: a bit, its end, a block, some bytes, more bytes, a file of its kind in its place, ..."""


def mixed(place: Path) -> Path:
    """A sealed store with every kind of file: texts, vectors, noise, weights, maps, exact KL, unfinished work."""
    return Path(shutil.copytree(Path(_mixed().name) / "store", place))


@functools.cache
def _mixed() -> tempfile.TemporaryDirectory[str]:
    """The directory of such a store, made once."""
    made = tempfile.TemporaryDirectory(prefix="klscale-attacks-")
    store = Store(str(shutil.copytree(OLD, Path(made.name) / "store")))
    assert [*store.seal()]
    for head in store.text_sets():
        if not head["external"]:
            entry = store.entries(head["id"])[0]
            store.write_partial(head["id"], "0" * 12, store.scores(entry))
    return made


def damage(path: Path, how: str, others: Sequence[Path], generator: random.Random) -> None:
    """Do this to a file."""
    data = path.read_bytes()
    at = generator.randrange(len(data))
    if how == "flip":
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << generator.randrange(8)]) + data[at + 1 :])
    elif how == "cut":
        path.write_bytes(data[:at])
    elif how == "zeros":
        path.write_bytes(data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :])
    elif how == "lose":
        path.write_bytes(data[:at] + data[at + 1 + generator.randrange(32) :])
    elif how == "add":
        path.write_bytes(data[:at] + generator.randbytes(1 + generator.randrange(32)) + data[at:])
    elif how == "swap":
        other = generator.choice(others)
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif how == "retype":
        path.write_bytes(generator.choice([b"[]", b"null", b'{"record": []}', b"PAR1", b"\xff\xfe", b"{" * 9000, b"1"]))
    else:
        path.unlink()
        if how == "directory":
            path.mkdir()
        elif how == "link":
            path.symlink_to(path.parents[len(path.parts) // 2] / "nowhere")


def damages(place: Path, budget: int, seed: int, *, said: Callable[[str], object] = lambda _: None) -> Tally:
    """Damage one file of a store so many times. Every number that the store still gives is what it was, and what it no
    longer gives is said; the vectors in other files are there."""
    tally, generator = Tally(), random.Random(seed)
    whole = mixed(place / "whole")
    numbers, names = (
        contents(whole),
        [str(path.relative_to(whole)) for path in sorted(whole.rglob("*")) if path.is_file()],
    )
    while tally.tries < budget:
        name, how = names[tally.tries % len(names)], HOW[tally.tries // len(names) % len(HOW)]
        tally.tries += 1
        base = place / "now"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(whole, base / "store")
        before = tree(whole)
        kind = name.split("/")[0]
        others = [base / "store" / other for other in names if other.split("/")[0] == kind and other != name]
        what = f"{how} {name}"
        damage(base / "store" / name, how, others or [base / "store" / names[0]], generator)
        wrong: list[tuple[str, str]] = []
        try:
            there, said_of = contents(base / "store"), problems(base / "store")
        except Exception:
            wrong.append((TRACEBACK, f"{what}: {traceback.format_exc()[-1500:]}"))
            there, said_of = {}, {}
        wrong += [("silent changes", f"{what}: {key}") for key, value in there.items() if numbers.get(key) != value]
        lost = numbers.keys() - there.keys()
        if not wrong and lost and not said_of and how != "delete":
            wrong.append(("silent changes", f"{what}: {lost} gone without a word"))
        elsewhere = [key for key in lost if key.startswith("vector") and kind not in ("vectors", "texts")]
        wrong += [("vectors lost", f"{what}: {key}") for key in elsewhere]
        if tally.tries % 10 == 0:  # as a user meets it
            ended = run(
                [*generator.choice([["check"], ["kl", "--texts", "817faccc080f"], ["ls"]]), "--store", "store"], base
            )
            if ended.wrong:
                wrong.append((ended.wrong.split(":")[0], f"{what}: {ended.wrong}"))
        if tree(whole) != before or {path.name for path in base.iterdir()} - {"store", "cache", "hf"}:
            wrong.append(("writes outside", what))
        for kind_of, text in wrong:
            tally.add(kind_of, text)
            said(text)
    return tally


# ------------------------------------------------------------------------------------------------------ hostile stores

COMMANDS = [
    ["check"],
    ["ls", "--json"],
    ["kl", "--json"],
    ["scale"],
    ["map"],
    ["texts", "clip"],
    ["check", "--seal"],
    ["compare", "mock://1", "mock://2"],
    ["rm", "a"],
    ["score", "mock://3"],
]


def hostile(place: Path, n: int) -> str:
    """Make a stranger's store; what is wrong with it, in words."""
    store = mixed(place)
    generator = random.Random(n)
    outside = store.parent / "outside"
    outside.mkdir()
    (outside / "secret.json").write_text('{"told": "what nobody may read"}')
    text_set = generator.choice(["817faccc080f", "44150156611b"])
    head = store / "texts" / f"{text_set}.json"
    known = json.loads(head.read_text())
    vector = generator.choice(sorted((store / "vectors").rglob("*.parquet")))
    names = ["../outside/secret", "/etc/passwd", "..", "", "a/b", "\x00", "~root", "x" * 5000, "\x1b]0;x\x07", "\ud800"]

    def links(name: str, target: Path) -> None:
        path = store / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def rewritten(**change: Any) -> None:
        record = {name: value for name, value in {**known, **change}.items() if name not in ("record", SEAL)}
        head.write_bytes(records.to_json("texts", record))

    def vector_with(**change: Any) -> None:
        table = pq.read_table(vector)
        metadata = {**json.loads(table.schema.metadata[b"klscale"]), **change}
        metadata.pop("record", None)
        text = json.dumps(metadata, ensure_ascii=False).encode("utf-8", "replace")
        vector.write_bytes(records.to_parquet("vector", table, json.loads(text)))

    ways: list[tuple[str, Callable[[], Any]]] = [
        ("an id that is a path", lambda: rewritten(id=generator.choice(names))),
        ("a name that is a path", lambda: rewritten(name=generator.choice(names).encode("utf-8", "replace").decode())),
        (
            "a directory that is a link outside",
            lambda: links(generator.choice(["vectors", "noise", "maps", "partial"]), outside),
        ),
        ("texts that are a link outside", lambda: links(f"texts/{text_set}.jsonl", outside / "secret.json")),
        ("a vector that is a link to a device", lambda: links(str(vector.relative_to(store)), Path("/dev/zero"))),
        ("a pipe", lambda: (head.unlink(), os.mkfifo(head))),
        ("more texts than there are", lambda: rewritten(n_texts=2**62)),
        ("a clip of another type", lambda: rewritten(clip=generator.choice([{}, "x", 1e400, True, 10**400]))),
        ("a reference that is no string", lambda: vector_with(ref=generator.choice([1, None, [], names[0]]))),
        ("a key that is a path", lambda: vector_with(key=generator.choice(names[:5]))),
        (
            "attributes of other types",
            lambda: vector_with(attributes=generator.choice([[], "x", {"step": "x"}, {"seed": 10**30}])),
        ),
        ("deep JSON", lambda: head.write_bytes(b'{"a":' * 100_000)),
        ("a claim that is a link outside", lambda: links(f"partial/{text_set}/k.o.claim", outside / "secret.json")),
        (
            "a claim from the future",
            lambda: (
                (store / "partial" / text_set).mkdir(parents=True, exist_ok=True),
                (store / "partial" / text_set / "k.o.claim").write_text('{"key": "k", "owner": "o", "beat": 1e300}'),
            ),
        ),
        ("two sets of one name", lambda: shutil.copy(head, head.with_name("0123456789ab.json"))),
        (
            "a temporary file that is a link outside",
            lambda: links(".klscale-00000000-1-01234567.tmp", outside / "secret.json"),
        ),
        ("a store that is a directory of links", lambda: links("texts", outside)),
    ]
    what, make = ways[n % len(ways)]
    make()
    return what


def hostile_stores(place: Path, budget: int, seed: int, *, said: Callable[[str], object] = lambda _: None) -> Tally:
    """Use so many stores of strangers with every command. Nothing outside of them is read into them or changed."""
    tally = Tally()
    for n in range(seed * 1000, seed * 1000 + budget):
        tally.tries += 1
        base = place / "hostile"
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir(parents=True)
        what = hostile(base / "store", n)
        outside = tree(base / "outside")
        for command in COMMANDS:
            for text_set in ([], ["--texts", "817faccc080f"]):
                if text_set and command[0] in ("check", "texts"):
                    continue
                ended = run([*command, *text_set, "--store", "store"], base)
                if ended.wrong:
                    tally.add(ended.wrong.split(":")[0], f"{n}, {what}, {command}: {ended.wrong}")
                    said(f"{n}, {what}, {command}: {ended.wrong}")
                if set(ended.output) & {"\x1b", "\x07"} or "nobody may read" in ended.output:
                    tally.add("silent changes", f"{n}, {what}, {command} prints {ended.output[:200]!r}")
        if tree(base / "outside") != outside or {p.name for p in base.iterdir()} - {"store", "outside", "cache", "hf"}:
            tally.add("writes outside", f"{n}, {what}")
    return tally
