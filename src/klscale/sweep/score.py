"""Score what a store lacks, resume what was interrupted, read the next model while one is scored."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from klscale.errors import InputError, KlscaleError, StorageError, UnavailableError, near_names, nearest
from klscale.inputs.attributes import attributes_of
from klscale.inputs.conversations import Template
from klscale.inputs.references import Model, ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Integers
from klscale.science.kl import KL
from klscale.sources.source import (
    LAYERS,
    LONG_TEXTS,
    REPEAT_RUNS,
    RESPONSES,
    SAMPLED_TOKENS,
    Fetched,
    Pinned,
    Reader,
    ReaderOptions,
    Source,
    Sources,
)
from klscale.store import vector_records
from klscale.store.claims import Claim
from klscale.store.files import name_of
from klscale.store.measured_records import NoRepeatRun
from klscale.store.store import Entry, Store, now, vector_key
from klscale.sweep.draws import begin, blocks, freeze, usable
from klscale.sweep.jobs import Job, OneAhead, Outcome, by_files, wait_for_others, with_windows, without_frames
from klscale.sweep.repeat_noise import keep_noise_floor
from klscale.sweep.runs import checkpoints, is_run, weigh_one
from klscale.vectors.draws import SAMPLED_TEXTS
from klscale.vectors.scores import DRAWS, SPANS, Scores

KEEP_EVERY_S = 10.0
"""Seconds of work that a killed command may lose."""
IN_FILES = ("type", "parameters", "parent", "quantization")
"""Attributes that come from a model's files and do not depend on its name."""
MOST_BESIDE = 1000
"""Directories beside a missing one whose names are compared with its own."""
LOOK_UPS = 8
"""Models that are looked up at the same time: each may take a round trip to the hub."""
MEGABYTES = "MB of text"
"""What a sweep counts while it scores."""
NOT_ROUND_TRIP = 0.001
"""Fraction of texts that may fail to round-trip without a note."""


def score(
    models: Sequence[str | ModelRef | Model],
    texts: TextSet,
    store: Store,
    *,
    device: str | None = None,
    batch_tokens: int | None = None,
    long_texts: str = "error",
    split_special_tokens: bool = False,
    template: str | None = None,
    layers: bool = False,
    first: int | None = None,
    sampled_tokens: int | None = None,
    rescore: bool = False,
    dry_run: bool = False,
    keep_downloads: bool = True,
    weigh: bool = False,
    elsewhere: Callable[[Sequence[Job]], Iterable[tuple[int, Outcome]]] | None = None,
    tell: Callable[[int, Outcome], None] = lambda *_: None,
    progress: Progress = SILENT,
) -> list[Outcome]:
    """Score each model on `texts` unless the store has its vector, and keep the vectors in the store.

    Returns one outcome a model, in order. A model that fails has its error there, and the others are scored all the
    same. A directory that is no model but holds `checkpoint-*`, and a pattern (`NAME@step*`), stand for their
    checkpoints, each with its own outcome. Finished work of an interrupted call is kept and not done again, also within
    a model. Processes that score into one store at the same time share the models between them.

    `device`, `batch_tokens`: chosen where None. `long_texts`: texts beyond a model's window are an `error`, or `skip`,
    or `window`. `split_special_tokens`: a string such as `<s>` in a text is read as text, not as a special token.
    `template`: for a set with prompts, `own` (the default: each model's own chat template), `none`, or a Jinja file.
    `layers`: score every model at each of its layers too, through the logit lens; without it only models that ask for
    it. `first`: the first so many texts of the set's random order, instead of all. A vector with more texts stays as it
    is, and a later call adds texts to one with fewer. `sampled_tokens`: the first so many texts of that order get
    sampled tokens (2,000 where None; 0: none); a vector that the store has stays as it is. `rescore`: score what the
    store has, too. `dry_run`: look up what would be scored and fetched, and do nothing. `keep_downloads` False: drop a
    fetched file from the local cache as soon as no further model needs it; about two checkpoints are then on disk at a
    time, and what the cache held before stays. `weigh`: for runs of the hub, also keep the squared distances between
    the weights of each checkpoint and those of the first and of the `runs.WINDOW` before it, which are then on disk at
    a time; for runs on this machine there is `runs.weigh`. `elsewhere`: gives (place, outcome) of each job that is
    left, instead of this process (`cluster.Cluster`). `tell`: is given the same as soon as a model is done.

    Raises InputError for options that cannot be used, and StorageError where the store cannot be written.
    """
    if long_texts not in LONG_TEXTS:
        raise InputError(f"--long-texts {long_texts!r} is not known.", remedy=nearest(long_texts, LONG_TEXTS))
    if first is not None and first < 1:
        raise InputError(f"first={first}: a vector is of one text at least.")
    first = None if first is None or first >= len(texts) else first
    sampled_tokens = SAMPLED_TEXTS if sampled_tokens is None else sampled_tokens
    if sampled_tokens < 0:
        raise InputError(f"sampled_tokens={sampled_tokens}: a number of texts is at least 0.")
    options = ReaderOptions(
        device, batch_tokens, long_texts, split_special_tokens=split_special_tokens, template=_template(texts, template)
    )
    sources = Sources(progress)
    sweep = _Sweep(texts, store, options, layers, first, sampled_tokens, rescore, progress, sources)
    outcomes: dict[int, Outcome] = {}
    jobs: list[Job] = []
    for place, (model, found) in enumerate(sweep.look_up([_model(model) for model in models])):
        if isinstance(found, Job):
            jobs.append(found)
        elif isinstance(found, Entry):
            outcomes[place] = Outcome(model.ref, "present", found, download_bytes=0 if dry_run else None)
        else:
            outcomes[place] = Outcome.failed(model, found)
    if weigh and not dry_run:
        jobs = with_windows(jobs, store)
    dropped = [] if keep_downloads or dry_run or elsewhere is not None else jobs
    files = {
        source: source.fetched(job.reads for job in dropped if job.source is source)
        for source in dict.fromkeys(job.source for job in jobs)
    }
    for job in jobs:
        if job.entry is not None:
            outcomes[job.place] = Outcome(job.ref, "present", job.entry, download_bytes=0 if dry_run else None)
        if job.done:  # a sweep that was cut short may have left its files
            files[job.source].done(job.reads)
    if not dry_run:
        sweep.drop_finished(jobs)
    jobs = [job for job in jobs if not (job.done or (dry_run and job.entry))]
    if jobs:
        done = sweep.plan(jobs) if dry_run else elsewhere(jobs) if elsewhere else sweep.run(jobs, files)
        for place, outcome in done:
            outcomes[place] = outcome
            tell(place, outcome)
    for fetched in files.values():
        fetched.drop()
    if sweep.equal:
        listed = "; ".join(f"{name} is {other}" for name, other in [*sweep.equal.items()][:3])
        more = "; ..." if len(sweep.equal) > 3 else ""
        progress.note(f"The same files under two names are scored once: {listed}{more}.")
    if sweep.unrepeated and not dry_run:
        progress.note(_without_noise(sweep.unrepeated, texts))
    return [outcomes[place] for place in sorted(outcomes)]


def _without_noise(found: Mapping[ModelRef, NoRepeatRun], texts: TextSet) -> str:
    """Why models have no run-to-run noise, and what measures it."""
    failed = {ref: one for ref, one in found.items() if one.failed}
    (ref, first), *others = (failed or found).items()
    more = f" So for {len(others) + 1:,} models." if others else ""
    said = f"{ref}: its run-to-run noise is not known. {first.why}{more}"
    if first.failed:
        return f"{said}\nIts repeat run failed with klscale {first.version}: --rescore scores it and tries again."
    if texts.prompts is not None:  # that study reads plain texts
        return said
    return f"{said}\nklscale validate --noise {replace(ref, dtype=ModelRef(ref.name).dtype)} measures it."


def _template(texts: TextSet, asked: str | None) -> Template | None:
    """How the prompts of a set are rendered; None for plain texts. Responses that all stand alone need no template."""
    if texts.prompts is not None:
        found = Template.of(asked or "own")
        return found if any(texts.prompts) else Template("none")
    if asked is not None:
        what = f"--template {asked}: {texts.name} has no prompts."
        raise InputError(what, "A chat template renders the prompts of responses.", "Leave it out.")
    return None


def _model(model: str | ModelRef | Model) -> Model:
    if isinstance(model, Model):
        return model
    return Model(model if isinstance(model, ModelRef) else ModelRef.parse(model))


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What all models of one call of `score` share."""

    texts: TextSet
    store: Store
    options: ReaderOptions
    layers: bool
    first: int | None
    sampled_tokens: int
    rescore: bool
    progress: Progress
    sources: Sources
    started: str = field(default_factory=now)
    equal: dict[str, str] = field(default_factory=dict)
    """Each model that has the vector of another one -> that one's name."""
    unrepeated: dict[ModelRef, NoRepeatRun] = field(default_factory=dict)
    """Each model without run-to-run noise -> why, where that is to be said."""

    @cached_property
    def entries(self) -> list[Entry]:
        return self.store.entries(self.texts.id)

    @cached_property
    def by_ref(self) -> dict[ModelRef, list[Entry]]:
        found: dict[ModelRef, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.ref, []).append(entry)
        return found

    @cached_property
    def repeated(self) -> Mapping[str, KL | NoRepeatRun]:
        """Key -> what the store had at first of the repeat run of a vector."""
        return self.store.repeat_runs(self.texts.id, [entry.key for entry in self.entries])

    # -------------------------------------------------------------------------------------------- what is there

    def look_up(self, models: Sequence[Model]) -> Iterator[tuple[Model, Entry | Job | KlscaleError]]:
        """Each model, and each checkpoint of a run, as a job, as an entry of the store, or with what is wrong. Several
        threads ask the sources."""
        self.progress.begin("looking up", len(models), "models")
        wanted = [one for model in models for one in self._checkpoints(model)]
        known = self.by_ref.keys() | {model.ref for model, _ in wanted}
        self.progress.begin("looking up", len(wanted), "models")
        threads = ThreadPoolExecutor(LOOK_UPS)
        try:
            pinned = [threads.submit(self._pin, model, known) for model, error in wanted if error is None]
            for place, (model, error) in enumerate(wanted):
                found: Entry | Job | KlscaleError
                try:
                    found = error or self._find(place, model, pinned.pop(0))
                except KlscaleError as problem:
                    found = self._with_near_names(model.ref, problem)
                self.progress.advance()
                yield model, found
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C nobody waits for the hub

    def _checkpoints(self, model: Model) -> list[tuple[Model, KlscaleError | None]]:
        """The model itself, or the checkpoints that it stands for; with what is wrong, where it has none."""
        if self.texts.external or not is_run(model.ref):
            return [(model, None)]
        try:
            return [(replace(model, ref=ref), None) for ref in checkpoints(model.ref, self.sources)]
        except KlscaleError as error:
            return [(model, error)]

    def _with_near_names(self, ref: ModelRef, error: KlscaleError) -> KlscaleError:
        """The error; of a model that is not there, with names of the store or of the same directory that are close."""
        if not isinstance(error, UnavailableError):
            return error
        names = set(map(str, self.by_ref))
        with suppress(OSError, RuntimeError):  # no directory, or the home of a user that is not there
            folder, slash, _ = ref.name.rstrip("/").rpartition("/")
            beside = islice(Path(folder or ".").expanduser().iterdir(), MOST_BESIDE)
            names |= {str(ModelRef(f"{folder}{slash}{one.name}")) for one in beside if one.is_dir()}
        found = copy(error)
        found.remedy = " ".join(filter(None, [near_names(str(ref), names - {str(ref)}), error.remedy]))
        return found

    def _pin(self, model: Model, known: Set[ModelRef]) -> Pinned | None:
        """What a reference means now; None where nothing is to be scored."""
        if self.texts.external or self._imported(model) is not None:
            return None
        pinned: Pinned = self.sources.pin(model.ref)
        if self.options.template is not None:
            source = self.sources.of(model.ref)
            source.require(model.ref, RESPONSES)
            if self.options.template.kind == "own":
                pinned = source.with_chat_template(pinned)
        if model.line and "parent" in model.attributes:
            parent = ModelRef.parse(model.attributes["parent"])
            if parent not in known and not self.sources.of(parent).may_have(parent):
                raise InputError(
                    f"{model.ref} has the parent {parent}, which is not there.",
                    "It is no model of the suite or the store, no directory here, and none that the hub shows.",
                    "Check its spelling, or take `parent` out.",
                )
        return pinned

    def _imported(self, model: Model) -> Entry | None:
        """The vector of a model that was imported, on texts that are here, and never scored."""
        named = self.by_ref.get(model.ref, [])
        imported = [entry for entry in named if str(entry.metadata.get("source", "")).startswith("import ")]
        usable = len(imported) == len(named) and not (self.rescore or self.layers or model.layers)
        return imported[-1] if imported and usable else None

    def _find(self, place: int, model: Model, pinning: Future[Pinned | None]) -> Entry | Job:
        """A model as a job, with the store's entry if it has one; the entry alone where the model is out of reach."""
        layers = self.layers or model.layers
        named = self.by_ref.get(model.ref, [])
        if self.texts.external:
            if layers and not named:  # imported at its layers alone: the last is its output
                of_layers = [entry for entry in self.entries if entry.ref.layer is not None]
                named = [entry for entry in of_layers if replace(entry.ref, layer=None) == model.ref]
                named.sort(key=lambda entry: entry.ref.layer or 0)
            if named:
                return named[-1]
            names = set(map(str, self.by_ref))
            raise InputError(
                f"{self.texts.name} holds no {model.ref}, and has no texts to score it on: only imported values.",
                near_names(str(model.ref), names) or (nearest("", names) if len(names) < 20 else "See `klscale ls`."),
                "Choose a model of that set, or other texts with --texts.",
            )
        if model.ref.layer is not None:
            what = f"{model.ref} is a layer: a model is scored at all of its layers at once."
            why = "A # that belongs to the name itself is written %23."
            raise InputError(what, why, f"klscale layers {replace(model.ref, layer=None)}")
        if (entry := self._imported(model)) is not None:
            return entry
        source = self.sources.of(model.ref)
        conventions = source.conventions(self.options)
        if layers:
            source.require(model.ref, LAYERS)
        try:
            pinned = pinning.result()
            assert pinned is not None
        except UnavailableError as error:
            alike = [entry for entry in named if entry.metadata["convention"] in conventions]
            alike = [entry for entry in alike if entry.n_layers or not layers]
            if not alike or self.rescore:
                raise
            self.progress.note(f"{error.what} Its vector of {alike[-1].metadata.get('date', '')[:10]} is used.")
            return alike[-1]
        keys = tuple(vector_key(pinned.identity, model.ref, convention, source.name) for convention in conventions)
        same = [entry for entry in self.entries if entry.key in keys]
        fit = [entry for entry in same if self._will_do(entry, layers)]
        mine = [entry for entry in fit if entry.ref == model.ref]
        there = self._labelled(model, (mine or fit)[-1]) if fit else None
        layers = layers or any(entry.n_layers for entry in same)  # a file is replaced only by one that holds as much
        job = Job(place, model, source, pinned, keys, layers)
        return job if there is None else self._with(job, there, self.repeated)

    def _with(self, job: Job, entry: Entry, repeated: Mapping[str, KL | NoRepeatRun]) -> Job:
        """The job with an entry of the store. Of the entry's repeat run nothing is kept if its writer was interrupted
        between the two, or wrote elsewhere. It is completed where the model is at hand."""
        kept = repeated.get(entry.key)
        if isinstance(kept, NoRepeatRun) and kept.failed:
            self.unrepeated[entry.ref] = kept
        n_texts = (entry.first or len(self.texts)) - len(entry.metadata.get("skipped") or ())
        lacks = n_texts > 1 and entry.key not in repeated and REPEAT_RUNS in job.source.capabilities
        return replace(job, entry=entry, unrepeated=lacks and job.source.is_at_hand(job.pinned))

    def _will_do(self, entry: Entry, layers: bool) -> bool:
        """Whether an entry with the right key makes scoring needless."""
        fresh = not self.rescore or (entry.metadata.get("date") or "") >= self.started
        return (
            fresh
            and bool(entry.n_layers or not layers)
            and larger(entry.first, self.first) == entry.first
            and (self.options.long_texts == "skip" or not entry.metadata.get("skipped"))
        )

    def _labelled(self, model: Model, entry: Entry) -> Entry:
        """The entry under this name and with these attributes: rewritten where it has others."""
        known, same = entry.metadata.get("attributes", {}), _place(entry.ref) == _place(model.ref)
        if same and all(known.get(name) == value for name, value in model.attributes.items()):
            return entry
        if not same:
            return self._renamed(entry, model)
        metadata = {**entry.metadata, "attributes": {**known, **model.attributes}}
        return self.store.write(self.texts, self.store.scores(entry), metadata)

    def _renamed(self, entry: Entry, model: Model, **pinned: Any) -> Entry:
        """The vector of an entry under the name of a model whose files hold the same. Of its attributes only those that
        are in its files stay; `pinned` is what the store keeps of the model's own files."""
        known = entry.metadata.get("attributes", {})
        known = attributes_of(model.ref, {name: known.get(name) for name in IN_FILES})
        self.equal[str(model.ref)] = str(entry.ref)
        named = {"ref": str(model.ref), "attributes": {**known, **model.attributes}, "date": now()}
        metadata = {**entry.metadata, **pinned, **named}
        return self.store.write(self.texts, self.store.scores(entry), metadata)

    def drop_finished(self, jobs: Sequence[Job]) -> None:
        """Forget unfinished work on vectors that are whole: what wrote them was cut short before it could."""
        left = {name_of(path) for path in self.store.files.list("partial", self.texts.id)}
        for job in jobs:
            if job.entry is None or job.partial not in left:
                continue
            if (claim := self.store.claim(self.texts.id, job.key)) is not None:
                try:
                    self._drop_partial(job, self.store.scores(job.entry))
                finally:
                    claim.release()

    def _drop_partial(self, job: Job, scores: Scores) -> None:
        """Forget unfinished work, unless it is of more texts than the vector."""
        unfinished = self.store.read_partial(self.texts.id, job.partial)
        if np.isin(unfinished.text, scores.text).all():
            self.store.drop_partial(self.texts.id, job.partial)

    @cached_property
    def by_content(self) -> dict[tuple[str, ...], Entry]:
        """The entries of the store by what their vectors depend on."""
        return {_what(entry): entry for entry in self.entries if "content" in entry.metadata}

    def _will_read(self, job: Job, after: Job) -> bool:
        """Whether a model has to be read: not where another one that is scored, or is just now, has the same vector."""
        alike = (entry for what, entry in self.by_content.items() if what[:3] == job.content)
        scored = after.content == job.content or any(self._will_do(entry, job.layers) for entry in alike)
        return bool(job.others) or not scored

    def _equal(self, job: Job) -> Entry | None:
        """The entry of a model whose files hold the same as those of another that is scored; None where none does."""
        for convention in job.source.conventions(self.options):
            entry = self.by_content.get((*job.content, convention, job.source.name))
            if entry is None or not self._will_do(entry, job.layers):
                continue
            identity = job.pinned.identity
            key = vector_key(identity, job.ref, convention, job.source.name)
            made = self._renamed(entry, job.model, key=key, identity=identity, weights=job.pinned.weights)
            if (noise := self.store.repeat_run(self.texts.id, entry.key)) is not None:
                self.store.write_noise_floor(self.texts.id, made.key, noise)
            return made
        return None

    def plan(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Outcome]]:
        """(place, outcome) of each job as a dry run tells it; what several models share is fetched by the first."""

        fetched: set[tuple[str, str]] = set()
        for job in jobs:
            files = job.source.to_fetch(job.pinned)
            size = None if files is None else sum(size for key, size in files.items() if key not in fetched)
            fetched.update(files or ())
            yield job.place, Outcome(job.ref, "missing", download_bytes=size)

    # ------------------------------------------------------------------------------------------------- scoring

    def run(self, jobs: Sequence[Job], files: Mapping[Source, Fetched]) -> Iterator[tuple[int, Outcome]]:
        """(place, outcome) of each job. One thread opens the next model while this one is scored."""
        for source in files:
            source.prepare(self.options)  # wrong for one, wrong for all
        self.store.keep_texts(self.texts)
        what = f"scoring {len(jobs)} models" if len(jobs) > 1 else f"scoring {jobs[0].ref}"
        self.progress.begin(what, self._megabytes() * len(jobs), MEGABYTES)
        queue, in_order = list(jobs), any(job.others for job in jobs)
        if not (in_order or self.store.claims(self.texts.id).keys().isdisjoint(job.key for job in jobs)):
            random.shuffle(queue)  # another process is at work: in the same order both would want the same model
        queue = by_files(queue)
        unweighed: list[KlscaleError] = []

        def read(job: Job, **alone: threading.Event) -> Reader | None:
            for fetched in files.values():
                fetched.drop()
            with files[job.source].reading(job.reads):
                if job.others:
                    try:
                        weigh_one(job.pinned, job.others, job.source, self.store)
                    except StorageError:
                        raise
                    except KlscaleError as error:  # it can be scored all the same
                        unweighed.append(error)
                return self.sources.open(job.pinned, self._options(job), **alone) if job.opens else None

        ahead: tuple[Job, Future[Reader | None]] | None = None
        with OneAhead() as thread:
            while queue:
                job, found = self._take(queue)
                started, n = time.monotonic(), len(jobs) - len(queue)
                if isinstance(found, Entry):
                    files[job.source].done(job.reads)
                    self.progress.advance(self._megabytes() * n - self.progress.done)
                    yield job.place, Outcome(job.ref, "present", found)
                    continue
                if len(jobs) > 1:
                    self.progress.now(f"scoring {job.ref} ({n} of {len(jobs)})")
                if ahead and ahead[0].place != job.place:  # another process has taken that one
                    ahead = None
                opening = ahead[1] if ahead else thread.submit(read, job)
                ahead, alone = None, threading.Event()
                entry = error = reader = None
                try:
                    reader = opening.result()
                    if queue and self._will_read(queue[0], after=job):
                        ahead = queue[0], thread.submit(read, queue[0], alone=alone)
                    entry = job.entry
                    if reader is not None:
                        if entry is None:
                            entry = self._score(job, reader)
                            self.by_content[_what(entry)] = entry
                        else:
                            self._repeat(entry, reader, self.store.scores(entry))
                except StorageError:
                    raise
                except KlscaleError as problem:
                    error = without_frames(problem)
                finally:
                    del opening
                    reader = None
                    alone.set()
                    found.release()
                files[job.source].done(job.reads)
                self.progress.advance(self._megabytes() * n - self.progress.done)
                seconds = time.monotonic() - started
                if error is not None:
                    yield job.place, Outcome.failed(job.model, error, seconds)
                else:
                    yield job.place, Outcome(job.ref, "present" if job.entry else "scored", entry, seconds=seconds)
        if unweighed:
            first, more = unweighed[0], f" So for {len(unweighed):,} checkpoints." if len(unweighed) > 1 else ""
            self.progress.note(f"{first}{more}\nTheir weights are not compared.")

    def _take(self, queue: list[Job]) -> tuple[Job, Claim | Entry]:
        """The first job that no other process works on, off the queue and claimed; or one that another process has
        finished, with its entry. Waits while others work on all that are left."""
        waiting = False
        while True:
            claims = self.store.claims(self.texts.id)
            for job in queue:
                claim = None if job.key in claims else self.store.claim(self.texts.id, job.key)
                if claim is None:
                    continue
                queue.remove(job)
                entry = self.store.entry(self.texts.id, job.keys)
                if entry is not None and self._will_do(entry, job.layers):
                    entry = self._labelled(job.model, entry)
                else:
                    entry = self._equal(job) if job.entry is None else None
                if entry is not None:
                    job = self._with(job, entry, self.store.repeat_runs(self.texts.id, [entry.key]))
                    if job.done:
                        claim.release()
                        return job, entry
                return job, claim
            if not waiting:
                by = ", ".join(sorted(set(claims.values())))
                self.progress.note(f"{queue[0].ref} is being scored by {by}: waiting for its vector.")
                waiting = True
            wait_for_others()

    def _options(self, job: Job) -> ReaderOptions:
        """The options of a job's reader. A model that is run only for its run-to-run noise needs no parts."""
        sampled = self.sampled_tokens and SAMPLED_TOKENS in job.source.capabilities
        wanted = {LAYERS: job.layers, SAMPLED_TOKENS: sampled}
        scored = job.entry is None
        return replace(self.options, parts=frozenset(part for part, asked in wanted.items() if asked and scored))

    def _score(self, job: Job, reader: Reader) -> Entry:
        """Score what the partial work of one model lacks, and write its vector."""
        convention = reader.convention(self.texts)
        key = vector_key(job.pinned.identity, job.ref, convention, job.source.name)
        there = self.store.entry(self.texts.id, [key])
        # A file is replaced only by one that holds as much.
        first = self.first if there is None else larger(self.first, there.first)
        wanted = self.texts.sample(first)
        if self.rescore:
            self.store.drop_partial(self.texts.id, job.partial)
        unfinished = self.store.read_partial(self.texts.id, job.partial)
        kept = [unfinished.at(wanted)]
        reader.sampling = None
        if there is not None and (bool(there.n_layers) != job.layers or self.rescore):
            there = None
        has_sampled = there is None or "sampled" in there.metadata
        if has_sampled and SAMPLED_TOKENS in reader.options.parts:
            sampled = self.texts.sample(min(self.sampled_tokens, len(self.texts)))
            reader.sampling = begin(reader, self.texts, self.store, np.intersect1d(sampled, wanted))
            if reader.sampling is not None:
                kept = [usable(unfinished.at(wanted), reader.sampling)]
        if there is not None:
            kept.append(self.store.scores(there))
        parts, unsaved, saved_at = [Scores.concatenate(kept)], list[Scores](), time.monotonic()
        self.progress.advance(self._megabytes(parts[0].text))
        todo = np.setdiff1d(wanted, parts[0].text)
        try:
            with closing(blocks(reader, self.texts, todo, self.store, self.progress)) as found:
                for scores in found:
                    unsaved.append(scores)
                    self.progress.advance(self._megabytes(scores.text))
                    self.progress.scored(len(scores), int(scores.n_tokens.sum()))
                    if time.monotonic() - saved_at > KEEP_EVERY_S:
                        parts.append(self._keep(job, reader, unsaved))
                        unsaved, saved_at = [], time.monotonic()
        except BaseException:  # Ctrl-C too: nothing that is computed is lost
            self._keep(job, reader, unsaved)
            raise
        scores = Scores.concatenate([*parts, *unsaved])
        if not len(scores):
            what = f"Every text is longer than the window of {job.ref}"
            what += "." if reader.window is None else f" ({reader.window:,} tokens): none is left to score."
            raise InputError(what, remedy="Use --long-texts window, or shorter texts.")
        metadata = {
            **metadata_of(
                reader, self.texts, scores, attributes={**reader.attributes, **job.model.attributes},
                convention=convention,
            ),
            "weights": job.pinned.weights,
        }  # fmt: skip
        if DRAWS.name in scores.parts:
            n_sampled = int(np.count_nonzero(np.asarray(scores.parts[DRAWS.name])))
            metadata["sampled"] = {"tokens": reader.tokens(self.texts).key, "texts": n_sampled}
        for note in (*self._notes(job.ref, metadata), *reader.notes()):
            self.progress.note(note)
        if first is not None:
            metadata |= {"first": first, "skipped": np.setdiff1d(wanted, scores.text).tolist()}
        there = None if self.rescore else self.store.entry(self.texts.id, [metadata["key"]])
        if there is not None and self._will_do(there, job.layers):
            entry = self._labelled(job.model, there)  # written by another process meanwhile
        else:
            entry = self.store.write(self.texts, scores, metadata)
        self._drop_partial(job, scores)
        if self.rescore or self.store.noise_floor(self.texts.id, entry.key) is None:
            self._repeat(entry, reader, scores)
        return entry

    def _notes(self, ref: ModelRef, metadata: Mapping[str, Any]) -> Iterator[str]:
        """What the tokenizer of a model makes of the texts, where it reads others than these."""
        if (lost := metadata["not_round_trip"]) > NOT_ROUND_TRIP:
            lost_kinds = metadata.get("not_round_trip_kinds", {})
            kinds = f" ({', '.join(f'{kind} in {n:,}' for kind, n in lost_kinds.items())})" if lost_kinds else ""
            yield (
                f"{ref}: its tokenizer does not give back {lost:.1%} of the texts{kinds}.\n"
                "It models other strings: its KL to a model with another tokenizer measures that too.\n"
                "Compare it with models of its own tokenizer, or leave such texts out of the set."
            )
        if special := metadata.get("special_token_texts"):
            split = self.options.split_special_tokens or self.options.template is not None
            way_out = "Its tokenizer cannot split them: leave such texts out of the set."
            yield (
                f"{ref}: in {special:,} texts a string such as <s> is read as a special token, not as text.\n"
                f"{way_out if split else '--split-special-tokens reads it as text.'}"
            )

    def _repeat(self, entry: Entry, reader: Reader, scores: Scores) -> None:
        """Measure and keep the run-to-run noise of a vector, or why there is none: the vector is whole all the same."""
        found = keep_noise_floor(entry.key, reader, self.texts, self.store, scores)
        # That of float32 is far below any KL of interest: of few texts nobody misses it.
        if isinstance(found, NoRepeatRun) and (found.failed or entry.ref.dtype != "float32"):
            self.unrepeated[entry.ref] = found

    def _keep(self, job: Job, reader: Reader, unsaved: Sequence[Scores]) -> Scores:
        part = Scores.concatenate(unsaved)
        if len(part):
            freeze(reader, self.texts, self.store)  # before the values that belong to it
            self.store.write_partial(self.texts.id, job.partial, part)
        return part

    def _megabytes(self, texts: Integers | None = None) -> float:
        """Of these texts, or of all that are asked for."""
        return float(self.texts.bytes[self.texts.sample(self.first) if texts is None else texts].sum()) / 1e6


def metadata_of(
    reader: Reader, texts: TextSet, scores: Scores, *, attributes: Mapping[str, Any], convention: str
) -> dict[str, Any]:
    """What the store keeps beside the vector that a reader has scored: which model it is of, and how it was made."""
    about = {
        "ref": str(reader.ref),
        "key": vector_key(reader.pinned.identity, reader.ref, convention, reader.source.name),
        "identity": reader.pinned.identity,
        "content": reader.pinned.content,
        "attributes": dict(attributes),
        "convention": convention,
        "source": reader.source.name,
        **reader.facts(texts),
        "skipped": np.setdiff1d(np.arange(len(texts)), scores.text).tolist(),
        "date": now(),
    }
    if SPANS.name in scores.parts and texts.cuts is not None:
        about["spans"] = vector_records.about_spans(texts, scores)
    return about


def _what(entry: Entry) -> tuple[str, ...]:
    """What the values of a vector depend on; equal for models of other names whose files hold the same."""
    known = entry.metadata
    content = str(known.get("content", known.get("identity")))
    return content, entry.ref.quantization or "", entry.ref.dtype, str(known["convention"]), str(known.get("source"))


def larger(first: int | None, other: int | None) -> int | None:
    """The larger of two numbers of texts of the random order, where None is all of them."""
    return None if first is None or other is None else max(first, other)


def _place(ref: ModelRef) -> ModelRef:
    """Equal for `runs/a` and `./runs/a`, which are one model."""
    return ref if ref.path is None else replace(ref, name=str(ref.path.resolve()))
