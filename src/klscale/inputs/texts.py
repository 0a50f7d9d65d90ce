"""Text sets: the fixed texts on which every model is scored, identified by a hash of their content and order."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import random
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError, nearest
from klscale.inputs.conversations import Prompt, as_messages, content_of, conversation_of
from klscale.inputs.spans import Cuts, cut_texts
from klscale.inputs.text_files import STDIN, has_records, read_document, read_records
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Integers

NAMED = {
    "pile-10k": "10,000 chunks of the Pile, the published set (downloaded once, 10 MB)",
    "pocket": "500 chunks of this Python installation's own documentation and source (no download)",
}

ALONE = ", responses alone"
"""Ends the name of a set of responses without their prompts."""
PILE_URL = "https://github.com/shimo-lab/modelmap/raw/5a1ea73/1000models/data/text/texts-10k-pile.jsonl"
PILE_BLOB_ID = "a8d9cbd6216e875828fca6dee61c71d432af6eac"
PILE_CLIP = -1412.3424912643432
"""The pooled 2 % quantile of the published log-likelihoods, in nats (arXiv 2502.16173)."""


@dataclass(frozen=True, eq=False)
class TextSet:
    """N texts in a fixed order.

    `bytes` (N,) are UTF-8 lengths. `domain` and `document` label the texts where known; texts of one document are
    not independent. `clip` (nats) is the frozen lower limit for log-likelihoods, or None. Where there are `prompts`, a
    text is the response to its prompt, and is scored given that. An *external* set knows the lengths but not the texts:
    log-likelihoods that came from elsewhere.

    `prompt_bytes` (N,) are those at the beginning of each text that were given to the model that wrote the rest, for
    texts drawn from a model. `drawn` says from which, and how: `author` (reference), `key` (of its vector), `seed`,
    `prompts`, counts of what was left out, and versions. `known_cuts` says how an external set is cut into spans.
    """

    name: str
    bytes: Integers
    texts: tuple[str, ...] | None = None
    domain: tuple[str, ...] | None = None
    document: tuple[str, ...] | None = None
    clip: float | None = None
    id: str = ""
    labels: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    prompt_bytes: Integers | None = None
    drawn: Mapping[str, Any] | None = None
    prompts: tuple[Prompt, ...] | None = None
    known_cuts: Cuts | None = None

    def __post_init__(self) -> None:
        if not self.id:
            if self.texts is None:
                raise ValueError("an external text set needs an id")
            object.__setattr__(self, "id", text_set_id(self.texts, self.prompt_bytes, self.prompts))

    @classmethod
    def from_texts(cls, name: str, texts: Sequence[str], **labels: Any) -> TextSet:
        """A set from strings; `domain=`, `document=`, `clip=` and `prompts=` as in the class."""
        lengths = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        return cls(name=name, bytes=lengths, texts=tuple(texts), **labels)

    @property
    def external(self) -> bool:
        """Whether the texts themselves are not known, and so nothing can be scored on them."""
        return self.texts is None

    @property
    def mean_bytes(self) -> float:
        """B, the mean length of a text in UTF-8 bytes."""
        return float(self.bytes.mean())

    @cached_property
    def random_order(self) -> Integers:
        """All texts (N,) in a random order that the id alone fixes: its first n are a random sample of the set, the
        same for every model and every call, and part of every larger one."""
        keys = [hashlib.sha256(f"{self.id} {s}".encode()).digest() for s in range(len(self))]
        return np.array(sorted(range(len(self)), key=keys.__getitem__), dtype=np.int64)

    @cached_property
    def cuts(self) -> Cuts | None:
        """Where the texts are cut into spans; None where that is not known of an external set. The texts and their
        prompts alone fix it."""
        return self.known_cuts if self.texts is None else cut_texts(self.texts, self.prompt_bytes)

    def sample(self, n: int | None) -> Integers:
        """The first n texts of the random order, or all (None), in the order of the set."""
        return np.arange(len(self)) if n is None else np.sort(self.random_order[:n])

    def __len__(self) -> int:
        return len(self.bytes)

    def __repr__(self) -> str:
        return f"TextSet({self.name!r}, id={self.id!r}, {len(self):,} texts, mean {self.mean_bytes:.1f} bytes)"

    def documents_of(self, texts: NDArray[Any]) -> NDArray[Any] | None:
        """The document labels of some texts (a mask or positions); None where they are not known."""
        return None if self.document is None else np.asarray(self.document)[texts]

    def with_clip(self, clip: float | None) -> TextSet:
        """The same texts, and so the same id, with another clip value."""
        return replace(self, clip=clip)

    def responses_alone(self) -> TextSet:
        """The responses without their prompts, as a set of their own: what PMI is relative to."""
        name = self.name + ALONE
        return replace(self, name=name, id="", clip=None, prompts=((),) * len(self))

    def records(self) -> Iterator[dict[str, Any]]:
        """One dictionary a text, as in a JSON lines file."""
        for s in range(len(self)):
            record: dict[str, Any] = {} if self.texts is None else {"text": self.texts[s]}
            if self.texts is not None and self.prompts is not None:
                record = {"messages": as_messages(self.prompts[s], self.texts[s])}
            record["bytes"] = int(self.bytes[s])
            if self.prompt_bytes is not None:
                record["prompt_bytes"] = int(self.prompt_bytes[s])
            for key, values in (("domain", self.domain), ("document", self.document), *self.labels.items()):
                if values is not None:
                    record[key] = values[s]
            yield record


def text_set_id(
    texts: Iterable[str], prompt_bytes: Integers | None = None, prompts: Sequence[Prompt] | None = None
) -> str:
    """The id of a text set: of its texts, their order, and their prompts where they have some."""
    given = [] if prompt_bytes is None else [prompt_bytes.astype("<i8").tobytes()]
    said = () if prompts is None else content_of(prompts)
    return content_id([*(text.encode() for text in texts), *given, *said])


def content_id(parts: Iterable[bytes]) -> str:
    """12 hexadecimal digits that identify a sequence of byte strings, their order included."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:12]


# --------------------------------------------------------------------------------------------------------- loading


def load_texts(source: str | os.PathLike[str] | TextSet, *, progress: Progress = SILENT) -> TextSet:
    """N texts in a fixed order, by name (`pile-10k`, `pocket`) or from a file, directory or fsspec URL.

    `.jsonl`: one JSON object a line with a `text` field, and `domain`, `document` if known; `prompt_bytes` of texts
    that a model wrote, from there on. In place of `text`, all lines may have `prompt` and `response`, or `messages`
    whose last one is the response. `.parquet`, `.csv`, `.tsv`: the same as columns. `.txt`: one text a line. All but
    Parquet may be compressed (`.gz`, `.zst`, `.bz2`, `.xz`, `.zip`). A directory: what `save_to_disk` of Hugging Face
    `datasets` wrote, or Parquet files. `hf://datasets/OWNER/NAME[/CONFIG[/SPLIT]]`: a data set of the hub. `-`:
    standard input, JSON lines or a text a line.

    Raises InputError for a file that cannot be used, naming the line, and KlscaleError when a download fails.

        texts = klscale.load_texts("my-texts.jsonl")
        print(len(texts), texts.mean_bytes)
    """
    if isinstance(source, TextSet):
        return source
    spec = os.fspath(source)
    if spec == "pile-10k":
        return replace(_read(str(download_pile(progress=progress)), spec), clip=PILE_CLIP)
    if spec == "pocket":
        return pocket_texts()
    return _read(spec, "stdin" if spec == STDIN else Path(spec.split("://")[-1]).name.split(".")[0])


def _read(spec: str, name: str) -> TextSet:
    records = _records(spec, with_prompts=True)
    if not records:
        raise InputError(
            f"{spec} holds no texts.",
            remedy="A line of a .jsonl file is an object with 'text'; a table has that column.",
        )

    def label(*keys: str) -> tuple[str, ...] | None:
        for key in keys:
            values = [record.get(key) for record in records]
            if all(value is not None and value == value for value in values):  # Parquet has NaN for a missing label
                return tuple(map(str, values))
        return None

    is_pile = len(records) == 10_000 and Path(spec).is_file() and git_blob_id(Path(spec)) == PILE_BLOB_ID
    try:
        return TextSet.from_texts(
            "pile-10k" if is_pile else name,
            [record["text"] for record in records],
            domain=label("domain", "pile_set_name"),
            document=label("document", "pile_idx"),
            clip=PILE_CLIP if is_pile else None,
            prompt_bytes=_prompts(spec, records),
            prompts=tuple(record["prompt"] for record in records) if records[0].get("prompted") else None,
        )
    except UnicodeEncodeError as error:
        raise InputError(
            f"{spec} holds a text that is not Unicode.",
            f"{error.reason} ({error.object[:40]!r}).",
            "Delete that record.",
        ) from error


def _prompts(spec: str, records: Sequence[Mapping[str, Any]]) -> Integers | None:
    """The bytes at the beginning of each text that were given to its author; None where they are not known."""
    values = [record.get("prompt_bytes") for record in records]
    if None in values:
        return None
    for n, (value, record) in enumerate(zip(values, records, strict=True), 1):
        if not is_prompt(value, record["text"]):
            raise InputError(
                f"{spec}, text {n}: prompt_bytes {str(value)[:40]!r} is no place in the text.",
                "It counts the bytes in front that were given to the model which wrote the rest.",
                "Mend it, or leave `prompt_bytes` out.",
            )
    return np.array(values, dtype=np.int64)


def is_prompt(value: Any, text: str) -> bool:
    """Whether a value is a number of bytes after which a text goes on, with a whole character."""
    data = text.encode()
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(data)
    return whole and data[value] & 0xC0 != 0x80


def _records(spec: str, *, with_prompts: bool = False) -> list[dict[str, Any]]:
    """The texts of a file as dictionaries that hold a non-empty string `text`. `with_prompts`: all may be responses;
    they have their `prompt` then, and `prompted`."""
    try:
        found = read_records(spec)
    except (FileNotFoundError, ImportError) as error:
        near = "" if any(mark in spec for mark in "./") else nearest(spec, NAMED)
        raise InputError(
            f"Text set {spec!r} was not found.",
            str(error) or "There is no such file, and no text set of that name.",
            near or "Give a file (.jsonl, .parquet, .csv, .txt), hf://datasets/OWNER/NAME, pile-10k or pocket.",
        ) from error
    if with_prompts:
        found = _with_prompts(spec, found)
    for place, record in found:
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not record["text"]:
            raise InputError(
                f"{spec}, {place}: no text.",
                "Every record needs a non-empty string under 'text'.",
                "Mend or delete that record; for whole documents see `klscale texts build`.",
            )
    return [record for _, record in found]


def _with_prompts(spec: str, found: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The records of a file; those of responses have the response under `text`, its `prompt`, and `prompted`."""
    made, answers = list[tuple[str, Any]](), None
    for place, record in found:
        try:
            conversation = conversation_of(record) if isinstance(record, dict) else None
        except ValueError as error:
            remedy = "A line has 'text'; or 'prompt' and 'response'; or 'messages', the last one the assistant's."
            raise InputError(f"{spec}, {place}: {error}.", remedy=remedy) from error
        if answers not in (None, conversation is not None):
            what = "a text without a prompt" if conversation is None else "a response to a prompt"
            raise InputError(f"{spec}, {place}: {what}, unlike the first.", "A set holds texts or responses, not both.")
        answers = conversation is not None
        if conversation is not None:
            record = {**record, "prompt": conversation[0], "text": conversation[1], "prompted": True}
        elif isinstance(record, dict):
            record = {key: value for key, value in record.items() if key != "prompted"}
        made.append((place, record))
    return made


# -------------------------------------------------------------------------------------------------------- building


def chunk(document: str, max_bytes: int = 1024, min_bytes: int = 256) -> list[str]:
    """Cut a document into pieces of at most `max_bytes` UTF-8 bytes at character boundaries; keep those longer than
    `min_bytes` (the published text set: 1,024 and 256; arXiv 2502.16173)."""
    data, pieces, start = document.encode(), [], 0
    while start < len(data):
        end = min(start + max_bytes, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        if end - start > min_bytes:
            pieces.append(data[start:end].decode())
        start = end
    return pieces


def build_texts(
    name: str,
    documents: Iterable[tuple[str, str, str | None]],
    n_texts: int | None = None,
    *,
    max_bytes: int = 1024,
    min_bytes: int = 256,
    seed: int = 42,
) -> TextSet:
    """A text set of `n_texts` chunks (None: all) of documents, drawn at random with `seed`.

    `documents`: tuples of a document's name, its text, and its domain or None. Each is cut into chunks of more than
    `min_bytes` and at most `max_bytes` UTF-8 bytes. Texts of one document keep its name, and standard errors are
    clustered by it. Raises InputError where there are fewer chunks than `n_texts`, or none.

        texts = klscale.build_texts("books", [("one", open("one.txt").read(), None)], n_texts=500)
    """
    chunks = [
        (piece, document, domain) for document, text, domain in documents for piece in chunk(text, max_bytes, min_bytes)
    ]
    if not chunks or (n_texts is not None and len(chunks) < n_texts):
        raise InputError(
            f"{n_texts or 1:,} texts were asked for; the documents give {len(chunks):,}.",
            f"A text is a chunk of {min_bytes + 1} to {max_bytes} bytes.",
            "Ask for fewer, give more documents, or lower --min-bytes.",
        )
    sample = chunks if n_texts is None else random.Random(seed).sample(chunks, n_texts)
    texts, document_labels, domains = zip(*sample, strict=True)
    known = all(domain is not None for domain in domains)
    return TextSet.from_texts(name, texts, document=document_labels, domain=domains if known else None)


def read_documents(sources: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, str, str | None]]:
    """(document, text, domain) of each source: each record of a table, directory or data set is a document, as in
    `load_texts`; any other file is one document."""
    for source in map(str, sources):
        try:
            if has_records(source):
                for n, record in enumerate(_records(source), 1):
                    yield str(record.get("document") or f"{source}:{n}"), record["text"], record.get("domain")
            else:
                yield source, read_document(source), None
        except FileNotFoundError as error:
            raise InputError(f"{source} is not a file.", remedy="Give text files, or tables with 'text'.") from error


# ---------------------------------------------------------------------------------------------------------- pocket


def pocket_corpus() -> list[tuple[str, str, str]]:
    """Documents of this Python installation as (document, text, domain), in a fixed order.

    Domain `documentation` holds the topics that `help()` shows, `source` the standard library's modules.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    skip = {
        "test",
        "tests",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "idlelib",
        "lib2to3",
        "encodings",
        "pydoc_data",
        "_bundled",
    }
    documents = []
    with contextlib.suppress(ImportError):
        from pydoc_data.topics import topics

        documents += [(f"topic {name}", text, "documentation") for name, text in sorted(topics.items())]
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not skip.intersection(relative.parts) and not relative.name.startswith("_sysconfigdata"):
            with contextlib.suppress(UnicodeDecodeError, OSError):
                documents.append((relative.as_posix(), path.read_text(encoding="utf-8"), "source"))
    if len(documents) < 100:
        raise KlscaleError(
            f"Only {len(documents)} documents were found in {root}.",
            "The pocket text set is made from the Python installation's own sources, which are not all there.",
            "Install the full standard library (Debian: libpython3-stdlib), or give --texts FILE.",
        )
    return documents


def is_held_out(document: str, domain: str) -> bool:
    """Whether a pocket document is kept for scoring rather than for training: half the documentation, of which there
    is little, and one source file in eight."""
    share = 2 if domain == "documentation" else 8
    return hashlib.sha256(document.encode()).digest()[0] % share == 0


def pocket_texts(n_texts: int = 500) -> TextSet:
    """`n_texts` chunks of 65 to 256 bytes from the held-out pocket documents, half of them documentation.

    Made from the local Python installation: another Python version makes another set, with another id.
    """
    held_out = [document for document in pocket_corpus() if is_held_out(document[0], document[2])]
    halves = [
        build_texts("", (d for d in held_out if d[2] == domain), n_texts // 2, max_bytes=256, min_bytes=64)
        for domain in ("documentation", "source")
    ]
    order = random.Random(42).sample(range(n_texts), n_texts)

    def joined(name: str) -> tuple[str, ...]:
        both = getattr(halves[0], name) + getattr(halves[1], name)
        return tuple(both[s] for s in order)

    return TextSet.from_texts(
        f"pocket{'' if n_texts == 500 else f'-{n_texts}'}-python-{platform.python_version()}",
        joined("texts"),
        domain=joined("domain"),
        document=joined("document"),
    )


# -------------------------------------------------------------------------------------------------------- download


def cache_directory() -> Path:
    """Where downloads are kept: KLSCALE_CACHE, else `klscale` in the user's cache directory."""
    base = os.environ.get("KLSCALE_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "klscale"


def git_blob_id(path: Path) -> str:
    """The id that git gives to this file's content: sha1 of `blob <size>`, a zero byte and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download_pile(*, url: str | None = None, blob_id: str = PILE_BLOB_ID, progress: Progress = SILENT) -> Path:
    """The published text set's file: from the cache, else downloaded (a cut-off download resumes) and verified.

    `url` or the environment variable KLSCALE_PILE_URL name a mirror. Raises KlscaleError when it cannot be had.
    """
    url = url or os.environ.get("KLSCALE_PILE_URL") or PILE_URL
    target = cache_directory() / "texts-10k-pile.jsonl"
    if target.exists() and git_blob_id(target) == blob_id:
        return target
    part = target.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    remedy = f"Offline: fetch {PILE_URL} elsewhere and put it at {target}; or choose other texts: --texts pocket|FILE."
    try:
        for _ in range(3):
            if _fetch(url, part, progress):
                break
        else:
            raise KlscaleError(
                f"The download of pile-10k stopped early, {part.stat().st_size:,} bytes in.",
                f"The connection to {url} was cut three times.",
                "What arrived is kept: run the same command again to resume.",
            )
    except OSError as error:  # URLError, timeouts, a refused connection, a full disk
        raise KlscaleError(f"pile-10k could not be downloaded from {url}.", _reason(error), remedy) from error
    found = git_blob_id(part)
    if found != blob_id:
        part.unlink()
        raise KlscaleError(
            f"{url} served another file than the published one.", f"Its git blob id is {found}, not {blob_id}.", remedy
        )
    part.replace(target)
    return target


def _reason(error: OSError) -> str:
    return f"{getattr(error, 'reason', None) or error}."


def _fetch(url: str, part: Path, progress: Progress) -> bool:
    """Append what is missing of `url` to `part`; True when the file is complete by the server's own count."""
    import urllib.error  # only a download needs them, and each command would wait for them
    import urllib.request

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is missing
            raise
        return True
    with response, part.open("ab" if response.status == 206 else "wb") as file:
        length = response.headers.get("Content-Length")
        progress.begin("downloading pile-10k", float(length) / 1e6 if length else None, "MB")
        received = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            while block := response.read(1 << 16):
                file.write(block)
                received += len(block)
                progress.advance(len(block) / 1e6)
    return length is None or received >= int(length)
