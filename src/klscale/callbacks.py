"""KL inside training: the live model is scored on a few texts every so often, and the run does not notice.

trainer = Trainer(..., callbacks=[TrajectoryCallback("pile-10k", budget_seconds=10)])

watch = TrainingWatch("pile-10k", tokenizer, every=500)     # for any other loop
for step, batch in enumerate(batches):
    values = watch(model, step)                             # None at a step that is not measured
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
import os
import random
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers.trainer_callback import CallbackHandler, TrainerCallback

from klscale import divergence, sweeps
from klscale.divergence import KL, Estimate, Floats, Integers
from klscale.errors import InputError, KlscaleError
from klscale.models import DTYPES, ModelRef, attributes_of
from klscale.scoring.engine import Engine
from klscale.scoring.loading import LoadedModel, load, resolve, window_of
from klscale.scoring.quantization import loaded_so
from klscale.scoring.tokens import Tokens, tokenize
from klscale.store import Entry, Store
from klscale.texts import TextSet, load_texts
from klscale.vectors import CONVENTION, Scores

logger = logging.getLogger(__name__)

FEWEST_TEXTS = 64
"""A budget that is too small for this many texts is exceeded: fewer say too little."""
WINDOW = 10
"""Measurements after the start of an exponent (Kishino et al., arXiv 2505.15353)."""
RESAMPLES = 200
"""Bootstrap samples of the texts for the standard error of an exponent."""


class TrainingWatch:
    """Measures how far a model has moved, while it trains. Call it with the live model after every step.

    `texts`: a `TextSet`, or what `load_texts` takes. Of those that fit the model's window a random subset is scored,
    fixed at the start: as many as one measurement in `budget_seconds` allows, at least 64. Subsets of different size
    are nested. Give a small `TextSet` and a large budget to have the same texts on every machine.

    `every`: so many steps, or `log`: at each step up to 9, then each time a fifth later (10, 12, 14, 16, 19, ...).
    The first call is the start of the run, and always measured.

    `reference`: a model to measure the distance to, scored once at the start unless the store has its vector.
    `store`: where vectors go, under the names `NAME/checkpoint-STEP`, with these `attributes` (`family`, `seed`, ...).
    A run that goes on after an interruption takes up its subset, its start and its last vectors from there.

    `settled` becomes true when the last `patience` measurements all lie within `threshold` bits per byte of the newest
    one and the start does not: a run that has not moved yet, as in its warm-up, has not settled.

    In a data-parallel run every process calls it, and the first one measures. Weights, gradients, modes, buffers and
    random states are as they were after each call; see `untouched`.

    Raises InputError and KlscaleError at the start: for arguments that cannot be used, a name that the store has
    already, a model that is sharded or not a causal language model of transformers. Later failures are logged once,
    and training goes on.
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
        self._given_texts, self._every, self._budget = texts, every, budget_seconds
        self._reference_ref = None if reference is None else ModelRef.parse(str(reference))
        self._store = store if store is None or isinstance(store, Store) else Store(store)
        self._patience, self._threshold = patience, threshold
        self._run = uuid.uuid4().hex[:12]
        self._asked: int | None = None
        self._start: Floats | None = None
        self._recent: deque[tuple[int, Floats]] = deque(maxlen=max(WINDOW, patience or 0) + 1)
        self._reference: Floats | None = None
        self._subset: Integers | None = None
        self._batch_tokens: int | None = None
        self._said: set[str] = set()

    # -------------------------------------------------------------------------------------------------- when

    def __call__(self, model: Any, step: int) -> dict[str, float] | None:
        """What `measure` gives, at the first step and those of the schedule; None at others."""
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
        """Score the model now, whatever the schedule; None where this step was measured already, where that failed,
        and in all processes but the first.

        Of `kl/from_previous`, `kl/from_start`, `kl/to_reference` and `kl/bits_per_byte` in bits per byte, and of the
        diffusion exponent `kl/exponent`, a pure number, those that can be computed yet; each with its
        `..._standard_error` over texts.
        """
        if step == self._asked:
            return None
        starts, self._asked = self._asked is None, step
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        values = None
        if starts:
            _refuse(model)
        if _process() == 0:
            try:
                with untouched(model):
                    if starts:
                        self._begin(model, step)
                    values = self._measure(model, step)
            except Exception as error:
                if starts:
                    raise
                self._say_once(f"The measurement at step {step} failed; training goes on.\n{_told(error)}", "failed")
        self._agree()
        return values

    def _agree(self) -> None:
        """All processes stop or none: the others learn from the first whether the run has settled."""
        if self._patience is not None and _is_distributed() and torch.distributed.get_world_size() > 1:
            flag = [self.settled]
            torch.distributed.broadcast_object_list(flag, src=0)
            self.settled = flag[0]

    # ------------------------------------------------------------------------------------------------- start

    def _begin(self, model: Any, step: int) -> None:
        """Fix the texts, and take up what the store has of this run."""
        if self.tokenizer is None:
            raise InputError(
                "There is no tokenizer.", remedy="Give tokenizer=, the one that the model is trained with."
            )
        if self._store is not None and not self.name:
            raise InputError("The run has no name.", "The store keeps vectors by name.", "Give name=.")
        if self._subset is None:
            self._texts = self._find_texts()
            # A copy: a call leaves its marks on the truncation and padding of a fast tokenizer.
            self._tokens = tokenize(copy.deepcopy(self.tokenizer), self._texts)
        earlier = self._earlier(step)
        if self._subset is None:
            self._subset = self._taken_up(earlier[0]) if earlier else self._choose(model, step)
            self._bytes = self._texts.bytes[self._subset]
            documents = self._texts.document
            self._documents = documents and [documents[s] for s in self._subset]
            if self._reference_ref is not None:
                self._reference = self._row(self._score_reference(self._reference_ref, str(model.device)))
        self._start, self.settled = None, False
        self._recent.clear()
        for entry in earlier:
            assert self._store is not None
            self._remember(_live(entry)[1], self._row(self._store.scores(entry)))

    def _find_texts(self) -> TextSet:
        given = self._given_texts
        if self._store is None:
            texts = load_texts(given)
        elif isinstance(given, TextSet):
            texts = self._store.keep_texts(given)
        else:
            texts = self._store.resolve_texts(os.fspath(given))
        if texts.external:
            raise InputError(f"{texts.name} holds no texts, only imported values.", remedy="Choose other texts.")
        return texts

    def _earlier(self, step: int) -> list[Entry]:
        """What the store has of this run before a step, in order of steps."""
        if self._store is None:
            return []
        entries = self._store.entries(self._texts.id)
        named = [
            entry for entry in entries if _live(entry)[0] and entry.ref.name.startswith(f"{self.name}/checkpoint-")
        ]
        before = [entry for entry in named if _live(entry)[1] < step]
        if not before:
            if any(_live(entry)[0] != self._run for entry in named):
                raise InputError(
                    f"{self._store.location} holds a run named {self.name!r} already.",
                    f"This one begins at step {step}, so that it is not that run going on.",
                    f"Give another name=, another store, or take it out: klscale rm {named[0].ref} ...",
                )
            return []
        self._run = _live(before[-1])[0]
        return sorted((entry for entry in before if _live(entry)[0] == self._run), key=lambda entry: _live(entry)[1])

    def _taken_up(self, entry: Entry) -> Integers:
        """The subset that a vector of this run was scored on."""
        subset = np.setdiff1d(np.arange(len(self._texts)), entry.metadata["skipped"])
        self._say_once(f"{self.name} goes on with its {len(subset):,} texts of {self._texts.name}.")
        return subset

    def _choose(self, model: Any, step: int) -> Integers:
        """As many random texts as can be scored in time: a part of them is timed."""
        engine = self._engine(model, step)
        lengths, window = self._tokens.lengths, engine.loaded.window
        fit = np.flatnonzero(lengths <= (window or np.inf))
        if not len(fit):
            raise InputError(
                f"Every text of {self._texts.name} is longer than the window of the model ({window:,} tokens).",
                remedy="Give shorter texts: `klscale texts build --max-bytes`.",
            )
        order, n = np.random.default_rng(0).permutation(fit), min(FEWEST_TEXTS, len(fit))
        _timed(engine, self._tokens, order[:8])  # finds the output head
        seconds = _timed(engine, self._tokens, order[:n])
        while n < len(order) and seconds < self._budget / 4:
            n = min(2 * n, len(order))
            seconds = _timed(engine, self._tokens, order[:n])
        each = seconds / lengths[order[:n]].sum()
        cost = each * np.cumsum(lengths[order])
        n = max(int(np.searchsorted(cost, self._budget, side="right")), min(FEWEST_TEXTS, len(order)))
        long = len(self._texts) - len(fit)
        beyond = f" ({long:,} are longer than its window of {window:,} tokens)" if long else ""
        self._say_once(
            f"{n:,} of {len(self._texts):,} texts of {self._texts.name}{beyond} are scored at each measurement,"
            f" in about {cost[n - 1]:.2g} s on {engine.device}; the budget is {self._budget:g} s."
        )
        return np.sort(order[:n])

    def _score_reference(self, ref: ModelRef, device: str) -> Scores:
        if self._store is not None:
            (known,) = sweeps.score([ref], self._texts, self._store, long_texts="skip", dry_run=True)
            if known.error is not None:
                raise known.error
            if known.entry is not None:
                return self._store.scores(known.entry)
        loaded = load(resolve(ref), device)
        tokens = tokenize(loaded.tokenizer, self._texts)
        assert self._subset is not None
        return Scores.concatenate([*Engine(loaded, device=device).score(tokens, self._subset, long_texts="skip")])

    # ------------------------------------------------------------------------------------------- a measurement

    def _engine(self, model: Any, step: int) -> Engine:
        """A new one for each measurement, as it checks its output head against the model as that is now."""
        ref = ModelRef(f"{self.name or 'live'}/checkpoint-{step}", dtype=str(model.dtype).removeprefix("torch."))
        window = window_of(model.config.get_text_config())
        loaded = LoadedModel(ref, model, self.tokenizer, window, quantization=loaded_so(model, ref))
        engine = Engine(loaded, device=str(model.device), batch_tokens=self._batch_tokens)
        # The weight of an adapter's layer is not all that it computes.
        engine.own_logits = not isinstance(model.get_output_embeddings(), torch.nn.Linear)
        return engine

    def _measure(self, model: Any, step: int) -> dict[str, float]:
        assert self._subset is not None
        engine = self._engine(model, step)
        scores = Scores.concatenate([*engine.score(self._tokens, self._subset)])
        self._batch_tokens = engine.batch_tokens  # the same batches, and so the same rounding, from now on
        row = self._row(scores)
        found: dict[str, KL | Estimate] = {}
        if self._start is not None:
            found |= {"from_previous": self._kl(self._recent[-1][1], row), "from_start": self._kl(self._start, row)}
        if self._reference is not None:
            found["to_reference"] = self._kl(self._reference, row)
        found["bits_per_byte"] = divergence.bits_per_byte(row, self._bytes, documents=self._documents)
        self._remember(step, row)
        self.settled = self._has_settled(row)
        if (exponent := self._exponent()) is not None:
            found["exponent"] = exponent
        self._look_out(found)
        try:
            self._keep(engine, scores, step)
        except Exception as error:
            if len(self._recent) == 1:
                raise
            self._say_once(f"The vector of step {step} is not kept; training goes on.\n{_told(error)}", "not kept")
        return {
            f"kl/{name}{suffix}": number
            for name, estimate in found.items()
            for suffix, number in (("", estimate.value), ("_standard_error", estimate.standard_error))
            if math.isfinite(number)
        }

    def _row(self, scores: Scores) -> Floats:
        """Log-likelihoods (n,) of the subset, NaN where a text was not scored."""
        row = np.full(len(self._texts), np.nan)
        row[scores.text] = scores.log_likelihood
        return row[self._subset]

    def _kl(self, a: Floats, b: Floats) -> KL:
        return divergence.kl(a, b, self._bytes, clip=self._texts.clip, documents=self._documents)

    def _remember(self, step: int, row: Floats) -> None:
        if self._start is None:
            self._start = row
        self._recent.append((step, row))

    def _has_settled(self, row: Floats) -> bool:
        if self._start is None or self._patience is None or self._threshold is None:
            return False
        last = [earlier for _, earlier in list(self._recent)[-1 - self._patience : -1]]
        moved, *steps = (self._kl(earlier, row).value > self._threshold for earlier in (self._start, *last))
        return len(last) == self._patience and moved and not any(steps)

    def _exponent(self) -> Estimate | None:
        """Diffusion exponent: slope of ln KL(t0, t) on ln(t - t0) over the last 10 measurements, from the one before
        them (Kishino et al., arXiv 2505.15353); standard error by bootstrap of the texts. None before there are 11, and
        where the model has not moved."""
        if len(self._recent) <= WINDOW:
            return None
        steps, rows = zip(*list(self._recent)[-1 - WINDOW :], strict=True)
        clusters = divergence.cluster_codes(self._documents)
        codes = np.arange(len(self._bytes)) if clusters is None else clusters
        draws = np.array([drawn[codes] for drawn in divergence.bootstrap_draws(codes, RESAMPLES, seed=0)], dtype=float)
        i, j = np.triu_indices(len(rows), k=1)
        kl = divergence.kl_pairs(
            np.stack(rows), self._bytes, np.stack([i, j], axis=1),
            clip=self._texts.clip, documents=self._documents, draws=draws,
        )  # fmt: skip
        if not (kl["value"] > 0).all():
            return None
        squared = np.zeros((1 + RESAMPLES, len(rows), len(rows)))
        squared[:, i, j] = squared[:, j, i] = np.concatenate([kl["value"][None], kl["resampled"].T])
        fits = import_module("klscale.diffusion").fits(np.array(steps), squared, after=steps[0], window=WINDOW)
        slope = fits.slope[:, 0]
        value, error = float(slope[0]), float(slope[1:].std(ddof=1))
        return Estimate(value, error, (value - 1.96 * error, value + 1.96 * error), len(self._bytes), unit="")

    def _look_out(self, found: Mapping[str, KL | Estimate]) -> None:
        """Say where the numbers mean less than they seem to."""
        for name, estimate in found.items():
            if isinstance(estimate, KL) and not estimate.in_range:
                why = "above 1 bit/byte, or of a model that is far from the texts"
                self._say_once(f"kl/{name} is out of range ({why}): read it as a distance, not as a KL divergence.")
            if isinstance(estimate, KL) and estimate.heavy_tails:
                self._say_once(f"kl/{name} hangs on few texts (kurtosis above 10): its standard error is too small.")

    def _keep(self, engine: Engine, scores: Scores, step: int) -> None:
        if self._store is None:
            return
        model = engine.model
        known = {"type": model.config.get_text_config().model_type, "parameters": model.num_parameters(), "step": step}
        metadata = sweeps.metadata_of(
            engine, self._tokens, scores, identity=f"live:{self._run}:{step}", convention=CONVENTION,
            attributes=attributes_of(engine.loaded.ref, {**known, **self.attributes}),
        )  # fmt: skip
        self._store.write(self._texts, scores, metadata)

    def _say_once(self, message: str, kind: str = "") -> None:
        """At a level that is shown unless somebody has turned it off: what numbers mean depends on it."""
        if (kind or message) not in self._said:
            self._said.add(kind or message)
            logger.warning(message)


class TrajectoryCallback(TrainingWatch, TrainerCallback):  # type: ignore[misc]
    """A `TrainingWatch` for the Trainer of transformers: `Trainer(..., callbacks=[TrajectoryCallback(texts)])`.

    Its arguments are those of `TrainingWatch`. Where they are not given, the tokenizer is the Trainer's
    `processing_class`, the name its `output_dir`, so that a vector is named after the checkpoint that is saved at its
    step, and `seed` and `warmup` are among the attributes. The start and the last step are always measured. Values are
    logged as the Trainer's own are, at the steps of the schedule; its own are logged as without them. Training stops
    when the run has settled.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, processing_class: Any, **_: Any) -> Any:
        self._asked = None
        if self.tokenizer is None:
            self.tokenizer = getattr(processing_class, "tokenizer", processing_class)
        self.name = self.name or os.path.normpath(args.output_dir)
        known = {"seed": args.seed, "warmup": args.get_warmup_steps(state.max_steps)}
        self.attributes = {**known, **self.attributes}
        return _report(self(model, state.global_step), args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> Any:
        ends = control.should_training_stop
        values = self.measure(model, state.global_step) if ends else self(model, state.global_step)
        control.should_training_stop = ends or self.settled
        return _report(values, args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> Any:
        """Another callback may have ended the training after the step."""
        values = self.measure(model, state.global_step) if control.should_training_stop else None
        return _report(values, args, state, control)


def _report(values: dict[str, float] | None, args: Any, state: Any, control: Any) -> Any:
    """Log values as the Trainer logs its own: in `state.log_history`, and to every callback, the reporting ones among
    them. Its `log` itself would also tell of the loss, at steps that it is not asked for."""
    if values is None:
        return control
    logs = values if state.epoch is None else {**values, "epoch": state.epoch}
    state.log_history.append({**logs, "step": state.global_step})
    # Callbacks are told everything but who calls them.
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    if frame is not None:
        should_log = control.should_log
        control = frame.f_locals["self"].on_log(args, state, control, logs)
        control.should_log = should_log  # the loss is still to come
    return control


# ------------------------------------------------------------------------------------------------- leave no trace


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Evaluate a model that is being trained: within, it is in evaluation mode, in its own dtype and not compiled.
    After, everything is as before: the mode, attributes and buffers of each module (rotary embeddings that stretch keep
    the longest input there), and the random states of Python, NumPy and torch."""
    kept = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state that others use)
    devices = [model.device] if model.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.autocast(model.device.type, enabled=False),
        torch.compiler.set_stance("force_eager"),
    ):
        try:
            for module, attributes, _ in kept:
                if "_original_forward" in attributes:  # accelerate has put autocast around it
                    module.forward = attributes["_original_forward"]
            model.eval()
            yield
        finally:
            for module, attributes, buffers in kept:
                for name in vars(module).keys() - attributes.keys():
                    del vars(module)[name]
                vars(module).update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _refuse(model: Any) -> None:
    """Raise KlscaleError for a model that cannot be scored while it trains."""
    if not hasattr(model, "get_output_embeddings"):
        kind = type(model).__name__
        raise KlscaleError(f"{kind} is not a model of transformers.", remedy="Only causal language models are scored.")
    sharded = "ZeRO-3" if any(hasattr(parameter, "ds_id") for parameter in model.parameters()) else None
    if torch.distributed.is_available():
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.tensor import DTensor

        if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
            isinstance(parameter, DTensor) for parameter in model.parameters()
        ):
            sharded = "FSDP or tensor parallelism"
    if sharded:
        raise KlscaleError(
            f"A model that {sharded} has sharded cannot be scored while it trains.",
            "No process holds all of its weights, and to gather them would change the run's memory and timing.",
            "Save checkpoints and score those: klscale score RUN/checkpoint-500 ...",
        )
    if (dtype := str(model.dtype).removeprefix("torch.")) not in DTYPES:
        raise KlscaleError(f"A model in {dtype} cannot be scored.", remedy=f"Train in one of {', '.join(DTYPES)}.")
    if getattr(model.config, "rescale_every", 0):
        raise KlscaleError(
            "This model would change its weights whenever it is scored.",
            f"RWKV rescales them for evaluation (rescale_every={model.config.rescale_every}).",
            "Set model.config.rescale_every = 0: float32 and bfloat16 do not need it.",
        )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _process() -> int:
    return torch.distributed.get_rank() if _is_distributed() else 0


def _timed(engine: Engine, tokens: Tokens, texts: Sequence[int] | Integers) -> float:
    """Seconds that scoring these texts takes."""
    started = time.perf_counter()
    for _ in engine.score(tokens, texts):
        pass
    return time.perf_counter() - started


def _live(entry: Entry) -> tuple[str, int]:
    """Run and step of a vector that was written here; no run for any other."""
    kind, _, rest = str(entry.metadata.get("identity", "")).partition(":")
    run, _, step = rest.partition(":")
    return (run, int(step)) if kind == "live" else ("", -1)


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, KlscaleError) else f"{type(error).__name__}: {error}"
