"""KL inside training: the live model is scored on a few texts at intervals, and the run does not change.

trainer = Trainer(..., callbacks=[TrajectoryCallback("pile-10k", budget_seconds=10)])

watch = TrainingWatch("pile-10k", tokenizer, every=500)     # for any other loop
for step, batch in enumerate(batches):
    values = watch(model, step)                             # None at a step that is not measured
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import time
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from numpy.typing import NDArray
from transformers.trainer_callback import CallbackHandler, TrainerCallback

from klscale.errors import InputError, KlscaleError
from klscale.inputs.attributes import attributes_of
from klscale.inputs.references import ModelRef
from klscale.inputs.spans import RULE
from klscale.inputs.texts import TextSet, load_texts
from klscale.science import diffusion
from klscale.science.arrays import Floats, Integers
from klscale.science.bootstrap import RESAMPLES, estimate_from_resamples, text_draws
from klscale.science.diffusion import WINDOW
from klscale.science.estimates import Estimate
from klscale.science.kl import KL, bits_per_byte, kl, kl_pairs
from klscale.science.reported import LARGEST_BY_SPANS, ReportedKL
from klscale.sources.source import Reader, ReaderOptions, Sources
from klscale.sources.tokens import Tokens
from klscale.store.store import Entry, Store
from klscale.store.vector_records import spans_of
from klscale.sweep.score import metadata_of, score
from klscale.training.live import live_reader, live_tokens, require_scorable, untouched
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION, SpanRow, Vectors, attribute_table

logger = logging.getLogger(__name__)

FEWEST_TEXTS = 64
"""Fewest texts of a measurement; a smaller budget is exceeded. Standard errors from fewer would be too large."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """The texts of every measurement: a `subset` (n,) of N texts."""

    texts: TextSet
    tokens: Tokens
    subset: Integers

    @cached_property
    def bytes(self) -> Integers:
        return self.texts.bytes[self.subset]

    @cached_property
    def documents(self) -> NDArray[Any] | None:
        return self.texts.documents_of(self.subset)

    def row(self, scores: Scores) -> Floats:
        """Log-likelihoods (n,) in nats, NaN where a text was not scored."""
        return self._all(scores)[self.subset]

    def _all(self, scores: Scores) -> Floats:
        row = np.full(len(self.texts), np.nan)
        row[scores.text] = scores.log_likelihood
        return row

    def _spans(self, scores: Scores) -> SpanRow | None:
        packed = spans_of(scores, {"spans": {"rule": RULE}}, self.texts)
        return None if packed is None else SpanRow(lambda: packed)

    def by_whole_texts(self, a: Scores, b: Scores) -> KL:
        return kl(self.row(a), self.row(b), self.bytes, clip=self.texts.clip, documents=self.documents)

    def kl(self, a: Scores, b: Scores) -> ReportedKL:
        """By spans where the tokenizer gives offsets, else by whole texts."""
        names, rows = (ModelRef("a"), ModelRef("b")), (a.at(self.subset), b.at(self.subset))
        spans = tuple(map(self._spans, rows))
        table = attribute_table(names, [{"convention": CONVENTION}] * 2)
        return Vectors(np.stack([*map(self._all, rows)]), names, table, self.texts, spans).reported_kl(*names)


class TrainingWatch:
    """Measures KL along a run while the model trains. Call it with the live model after every step; it returns the
    values of `measure`, in bits per byte, or None.

    `texts`: a `TextSet`, or an argument of `load_texts`. A random subset of the texts that fit the model's window is
    fixed at the start: as many as one measurement in `budget_seconds` allows, at least 64. Subsets of different size
    are nested. Give a small `TextSet` and a large budget to have the same texts on every machine.

    `every`: so many steps, or `log`: at each step up to 9, then each time a fifth later (10, 12, 14, 16, 19, ...).
    The first call is the start of the run, and always measured.

    `reference`: a model to measure the distance to, scored once at the start unless the store has its vector.
    `store`: it keeps the vectors under the names `NAME/checkpoint-STEP`, with these `attributes` (`family`, `seed`,
    ...). A run that continues after an interruption reads its subset, its start and its last vectors from there.

    `settled` becomes true when the last `patience` measurements all lie within `threshold` bits per byte of the newest
    one and the start does not: a run that has not moved yet, as in its warm-up, has not settled. This is by whole
    texts, which overstate KL and count a drift of all tokens too.

    In a data-parallel run every process calls it, and the first one measures. The run continues as without it, to the
    bit: each call restores weights, gradients, modes, buffers and random states.

    Raises InputError and KlscaleError at the start: for arguments that cannot be used, for a name that the store has
    already, and for a model that is sharded or not a causal language model of transformers. Later failures are logged
    once, and training continues.
    """

    def __init__(
        self,
        texts: TextSet | str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        every: int | Literal["log"] = "log",
        budget_seconds: float = 10.0,
        reference: str | ModelRef | None = None,
        store: Store | str | os.PathLike[str] | None = None,
        name: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        patience: int | None = None,
        threshold: float | None = None,
    ) -> None:
        if every != "log" and not (isinstance(every, int) and every > 0):
            raise InputError(f"every={every!r} is no schedule.", remedy="Give a number of steps, or 'log'.")
        if (patience is None) != (threshold is None):
            raise InputError(
                f"patience={patience!r} with threshold={threshold!r} is no rule to stop by.",
                "It takes a number of measurements and a KL in bits per byte.",
                "Give both, or neither.",
            )
        for argument, value in (("budget_seconds", budget_seconds), ("patience", patience), ("threshold", threshold)):
            if value is not None and not value > 0:
                raise InputError(f"{argument}={value!r} is not above 0.")
        self.tokenizer, self.name, self.attributes = tokenizer, name, dict(attributes or {})
        self.settled = False
        self._texts, self._every, self._budget = texts, every, budget_seconds
        self._reference = None if reference is None else ModelRef.parse(str(reference))
        self._store = store if store is None or isinstance(store, Store) else Store(store)
        self._patience, self._threshold = patience, threshold
        self._run = uuid.uuid4().hex[:12]
        self._asked: int | None = None
        """The last step with a measurement, also a failed one; None before the start."""
        self._sample: _Sample | None = None
        self._reference_scores: Scores | None = None
        self._start: Scores | None = None
        self._recent: deque[tuple[int, Scores]] = deque(maxlen=max(WINDOW, patience or 0) + 1)
        """Step and vector of the last measurements."""
        self._batch_tokens: int | None = None
        self._said: set[str] = set()

    # ---------------------------------------------------------------------------------------------------------- when

    def __call__(self, model: Any, step: int) -> dict[str, float] | None:
        """The values of `measure` at the first step and at those of the schedule; None at others."""
        return self.measure(model, step) if self._is_due(step) else None

    def _is_due(self, step: int) -> bool:
        if self._asked is None:
            return True
        if step <= self._asked:
            return False
        if self._every != "log":
            return step % self._every == 0
        due = 1
        while due < step:
            due += max(1, due // 5)
        return due == step

    def measure(self, model: Any, step: int) -> dict[str, float] | None:
        """Name -> value of a measurement now, also outside the schedule.

        The names are `kl/from_previous`, `kl/from_start`, `kl/to_reference` and `kl/bits_per_byte` in bits per byte,
        and the diffusion exponent `kl/exponent`, a pure number. Each has its `..._standard_error` over texts. Values
        that cannot be computed yet are left out. None if this step was measured already, if the measurement fails, and
        in all processes but the first.
        """
        if step == self._asked:
            return None
        starts, self._asked = self._asked is None, step
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        if starts:
            require_scorable(model)
        values = None
        if not _is_distributed() or torch.distributed.get_rank() == 0:
            try:
                with untouched(model):
                    if starts:
                        self._begin(model, step)
                    values = self._measure(model, step)
            except Exception as error:
                if starts:
                    raise
                self._say_once(f"The measurement at step {step} failed; training continues.\n{_told(error)}", "failed")
        self._agree()
        return values

    def _agree(self) -> None:
        """Give all processes the first one's answer whether the run has settled, so that all stop or none."""
        if self._patience is not None and _is_distributed():
            flag = [self.settled]
            torch.distributed.broadcast_object_list(flag, src=0)
            self.settled = flag[0]

    # --------------------------------------------------------------------------------------------------------- start

    def _begin(self, model: Any, step: int) -> None:
        """Fix the texts, and read the vectors that the store has of this run."""
        if self.tokenizer is None:
            raise InputError(
                "There is no tokenizer.", remedy="Give tokenizer=, the one that the model is trained with."
            )
        if self._store is not None and not self.name:
            raise InputError("The run has no name.", "The store keeps vectors by name.", "Give name=.")
        texts = self._find_texts() if self._sample is None else self._sample.texts
        earlier = self._earlier(texts, step)
        if self._sample is None:
            tokens = live_tokens(self.tokenizer, texts)
            subset = self._taken_up(texts, earlier[0]) if earlier else self._choose(model, texts, tokens)
            self._sample = _Sample(texts, tokens, subset)
            if self._reference is not None:
                self._reference_scores = self._score_reference(self._reference, self._sample, str(model.device))
        self._start, self.settled = None, False
        self._recent.clear()
        for entry in earlier:
            assert self._store is not None
            self._remember(_live(entry)[1], self._store.scores(entry))

    def _find_texts(self) -> TextSet:
        if self._store is None:
            texts = load_texts(self._texts)
        elif isinstance(self._texts, TextSet):
            texts = self._store.keep_texts(self._texts)
        else:
            texts = self._store.resolve_texts(os.fspath(self._texts))
        if texts.external:
            raise InputError(f"{texts.name} holds no texts, only imported values.", remedy="Choose other texts.")
        return texts

    def _earlier(self, texts: TextSet, step: int) -> list[Entry]:
        """The store's entries of this run before a step, in order of steps."""
        if self._store is None:
            return []
        of_run = f"{self.name}/checkpoint-"
        named = [e for e in self._store.entries(texts.id) if _live(e)[0] and e.ref.name.startswith(of_run)]
        before = [entry for entry in named if _live(entry)[1] < step]
        if not before:
            if any(_live(entry)[0] != self._run for entry in named):
                raise InputError(
                    f"{self._store.location} holds a run named {self.name!r} already.",
                    f"This one begins at step {step}, so it does not continue that run.",
                    f"Give another name=, another store, or remove it: klscale rm {named[0].ref} ...",
                )
            return []
        self._run = _live(before[-1])[0]
        return sorted((entry for entry in before if _live(entry)[0] == self._run), key=lambda entry: _live(entry)[1])

    def _taken_up(self, texts: TextSet, entry: Entry) -> Integers:
        """The subset that a vector of this run was scored on."""
        subset = np.setdiff1d(np.arange(len(texts)), entry.metadata["skipped"])
        self._say_once(f"{self.name} continues with its {len(subset):,} texts of {texts.name}.")
        return subset

    def _choose(self, model: Any, texts: TextSet, tokens: Tokens) -> Integers:
        """Positions of as many random texts as the budget allows; some texts are timed."""
        reader = self._reader(model, tokens, 0)
        lengths, window = tokens.lengths, reader.window
        fit = np.flatnonzero(lengths <= (window or np.inf))
        if not len(fit):
            raise InputError(
                f"Every text of {texts.name} is longer than the window of the model ({window:,} tokens).",
                remedy="Give shorter texts: `klscale texts build --max-bytes`.",
            )

        def seconds(chosen: Integers) -> float:
            started = time.perf_counter()
            for _ in reader.score(texts, chosen):
                pass
            return time.perf_counter() - started

        order = np.random.default_rng(0).permutation(fit)
        seconds(order[:8])  # finds the output head
        n = fewest = min(FEWEST_TEXTS, len(order))
        while (taken := seconds(order[:n])) < self._budget / 4 and n < len(order):
            n = min(2 * n, len(order))
        cost = taken / lengths[order[:n]].sum() * np.cumsum(lengths[order])
        n = max(int(np.searchsorted(cost, self._budget, side="right")), fewest)
        long = len(texts) - len(fit)
        beyond = f" ({long:,} are longer than its window of {window:,} tokens)" if long else ""
        self._say_once(
            f"{n:,} of {len(texts):,} texts of {texts.name}{beyond} are scored at each measurement, in about"
            f" {cost[n - 1]:.2g} s on {reader.device}; the budget is {self._budget:g} s."
        )
        return np.sort(order[:n])

    def _score_reference(self, ref: ModelRef, sample: _Sample, device: str) -> Scores:
        if self._store is not None:
            (known,) = score([ref], sample.texts, self._store, long_texts="skip", dry_run=True)
            if known.error is not None:
                raise known.error
            if known.entry is not None:
                return self._store.scores(known.entry)
        sources = Sources()
        reader = sources.open(sources.pin(ref), ReaderOptions(device, long_texts="skip"))
        return Scores.concatenate([*reader.score(sample.texts, sample.subset)])

    # ------------------------------------------------------------------------------------------------- a measurement

    def _reader(self, model: Any, tokens: Tokens, step: int) -> Reader:
        ref = ModelRef(f"{self.name or 'live'}/checkpoint-{step}", dtype=str(model.dtype).removeprefix("torch."))
        return live_reader(model, ref, f"live:{self._run}:{step}", tokens, self._batch_tokens)

    def _measure(self, model: Any, step: int) -> dict[str, float]:
        sample = self._sample
        assert sample is not None
        reader = self._reader(model, sample.tokens, step)
        scores = Scores.concatenate([*reader.score(sample.texts, sample.subset)])
        # From now on the same batches, so that rounding is the same.
        self._batch_tokens = reader.facts(sample.texts)["batch_tokens"]
        found: dict[str, ReportedKL | Estimate] = {}
        if self._start is not None:
            found["from_previous"] = sample.kl(self._recent[-1][1], scores)
            found["from_start"] = sample.kl(self._start, scores)
        if self._reference_scores is not None:
            found["to_reference"] = sample.kl(self._reference_scores, scores)
        found["bits_per_byte"] = bits_per_byte(sample.row(scores), sample.bytes, documents=sample.documents)
        self._remember(step, scores)
        self.settled = self._has_settled(sample)
        if len(self._recent) > WINDOW:
            found["exponent"] = self._exponent(sample)
        self._look_out(found)
        try:
            self._keep(reader, sample, scores, step)
        except Exception as error:
            if len(self._recent) == 1:
                raise
            self._say_once(f"The vector of step {step} is not kept; training continues.\n{_told(error)}", "not kept")
        return {
            f"kl/{name}{suffix}": number
            for name, estimate in found.items()
            for suffix, number in (("", estimate.value), ("_standard_error", estimate.standard_error))
            if math.isfinite(number)
        }

    def _remember(self, step: int, scores: Scores) -> None:
        if self._start is None:
            self._start = scores
        self._recent.append((step, scores))

    def _has_settled(self, sample: _Sample) -> bool:
        if self._patience is None or self._threshold is None or len(self._recent) <= self._patience:
            return False
        assert self._start is not None
        *last, newest = [scores for _, scores in self._recent][-1 - self._patience :]
        moved, *moves = (sample.by_whole_texts(one, newest).value > self._threshold for one in (self._start, *last))
        return moved and not any(moves)

    def _exponent(self, sample: _Sample) -> Estimate:
        """Diffusion exponent, a pure number: slope of ln KL(t0, t) on ln(t - t0) over the last 10 measurements, with t0
        the one before them (Kishino et al., arXiv 2505.15353). The standard error is by bootstrap of the texts."""
        steps, scores = zip(*list(self._recent)[-1 - WINDOW :], strict=True)
        rows = [*map(sample.row, scores)]
        n, documents = len(sample.bytes), sample.documents
        draws = text_draws(n, documents, resamples=RESAMPLES, seed=0)
        from_first = np.array([(0, later) for later in range(1, len(rows))])
        kl = kl_pairs(
            np.stack(rows), sample.bytes, from_first, clip=sample.texts.clip, documents=documents, draws=draws
        )
        squared = np.zeros((1 + RESAMPLES, len(rows), len(rows)))
        squared[:, 0, 1:] = np.concatenate([kl["value"][None], kl["resampled"].T])
        slope = diffusion.fits(steps, squared, after=steps[0], window=WINDOW).slope[:, 0]
        return estimate_from_resamples(slope[0], slope[1:], n, documents=documents, unit="")

    def _look_out(self, found: Mapping[str, ReportedKL | Estimate]) -> None:
        """Log the cautions of these values."""
        for name, estimate in found.items():
            if not isinstance(estimate, ReportedKL):
                continue
            if not estimate.in_range:
                limit = "100 nats/text" if estimate.is_published else f"{LARGEST_BY_SPANS} bits/byte by spans"
                why = f"above {limit}, or a model is far from the texts"
                self._say_once(f"kl/{name} is out of range ({why}): it is a distance, not a KL divergence.")
            if estimate.is_published and estimate.whole_texts.heavy_tails:
                self._say_once(f"kl/{name} depends on few texts (kurtosis above 10): its standard error is too small.")

    def _keep(self, reader: Reader, sample: _Sample, scores: Scores, step: int) -> None:
        if self._store is None:
            return
        known = {**reader.attributes, "step": step, **self.attributes}
        metadata = metadata_of(
            reader, sample.texts, scores, attributes=attributes_of(reader.ref, known), convention=CONVENTION
        )
        self._store.write(sample.texts, scores, metadata)

    def _say_once(self, message: str, kind: str = "") -> None:
        """Log a warning, the level that is shown by default: the meaning of the values depends on it."""
        if (kind or message) not in self._said:
            self._said.add(kind or message)
            logger.warning(message)


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _live(entry: Entry) -> tuple[str, int]:
    """Run and step of a vector that a watch has written; an empty run for any other vector."""
    found = re.fullmatch(r"live:([^:]+):([0-9]{1,15})", str(entry.metadata.get("identity", "")))
    return (found[1], int(found[2])) if found else ("", -1)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, KlscaleError) else f"{type(error).__name__}: {error}"


class TrajectoryCallback(TrainingWatch, TrainerCallback):  # type: ignore[misc]
    """A `TrainingWatch` for the Trainer of transformers: `Trainer(..., callbacks=[TrajectoryCallback(texts)])`.

    Its arguments are those of `TrainingWatch`. By default the tokenizer is the Trainer's `processing_class`, and the
    name is its `output_dir`: a vector has the name of the checkpoint that is saved at its step. `seed` and `warmup` are
    among the attributes. The start and the last step are always measured. Values are logged like the Trainer's own, at
    the steps of the schedule; its own are logged as without them. Training stops when the run has settled.

    Three values are logged: KL from the measurement before, KL from the start or, with one, to the `reference`, and
    bits per byte. `log_all`: log all values of `TrainingWatch.measure`, with their standard errors.
    """

    def __init__(
        self,
        texts: TextSet | str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        log_all: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(texts, tokenizer, **arguments)
        self._log_all = log_all

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, processing_class: Any, **_: Any) -> Any:
        self._asked = None
        if self.tokenizer is None:
            self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.name = self.name or os.path.normpath(args.output_dir)
        known = {"seed": args.seed, "warmup": args.get_warmup_steps(state.max_steps)}
        self.attributes = {**known, **self.attributes}
        return self._report(self(model, state.global_step), args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> Any:
        ends = control.should_training_stop
        values = self.measure(model, state.global_step) if ends else self(model, state.global_step)
        control.should_training_stop = ends or self.settled
        return self._report(values, args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> Any:
        """Another callback may have ended the training after the step."""
        values = self.measure(model, state.global_step) if control.should_training_stop else None
        return self._report(values, args, state, control)

    def _report(self, values: dict[str, float] | None, args: Any, state: Any, control: Any) -> Any:
        if values is not None and not self._log_all:
            away = "kl/to_reference" if self._reference is not None else "kl/from_start"
            values = {name: values[name] for name in ("kl/from_previous", away, "kl/bits_per_byte") if name in values}
        return _report(values, args, state, control)


def _report(values: dict[str, float] | None, args: Any, state: Any, control: Any) -> Any:
    """Log values as the Trainer logs its own: in `state.log_history`, and to every callback, reporting ones included.

    The Trainer's `log` is not called, because it may do more: in some subclasses it averages over the steps since its
    last call.
    """
    if values is None:
        return control
    logs = values if state.epoch is None else {**values, "epoch": state.epoch}
    state.log_history.append({**logs, "step": state.global_step})
    # A callback gets everything except its caller.
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    if frame is not None:
        should_log = control.should_log
        control = frame.f_locals["self"].on_log(args, state, control, logs)
        control.should_log = should_log  # the loss is still to come
    return control
