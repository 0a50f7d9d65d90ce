"""The seam: what a source of log-likelihoods is, and the list of all sources.

A source turns texts into log-likelihoods. `Source.pin` says which model exactly a reference means, `Source.open` gives
a `Reader` of that model, and `Reader.score` yields blocks of `Scores`. Everything else is a capability: optional, asked
for by its name, and refused with an InputError where a source does not have it.

A new source is one file with a subclass of `Source` and one of `Reader`, and one line in `SOURCES`. Nothing above this
room imports a source: all of them come from `Sources`.
"""

from __future__ import annotations

import contextlib
import platform
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from klscale.errors import InputError, KlscaleError, nearest
from klscale.inputs.conversations import Template
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import SILENT, Progress
from klscale.science.arrays import Floats, Integers
from klscale.sources.tokens import Tokens
from klscale.vectors.draws import Sampling
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION

SOURCES = {
    "": "klscale.sources.transformers.source:Transformers",
    "http": "klscale.sources.endpoint:Endpoint",
    "https": "klscale.sources.endpoint:Endpoint",
    "llamacpp": "klscale.sources.llama_cpp:LlamaCpp",
    "mock": "klscale.sources.mock:Mock",
    "vllm": "klscale.sources.vllm:Vllm",
}
"""Where the source of each scheme is defined, as `module:class`. A reference without a scheme is of transformers."""

LAYERS, NEXT_TOKENS, REPEAT_RUNS = "layers", "next-token probabilities", "repeat runs"
WEIGHT_FILES, WEIGHTS = "weight files", "weights in memory"
SAMPLED_TOKENS = "sampled tokens"
CHANGED_MODULES = "changed modules"
RESPONSES = "responses to prompts"
NOTHING_DRAWN = (
    "{}: nothing is drawn for its tokenizer yet, and its engine cannot draw. No KL by sampled tokens.\n"
    "Score a model of transformers with that tokenizer first, then this one again with --rescore."
)
Keep = Callable[[int, NDArray[np.int32]], None]
"""Takes the position of a text and its token ids (n,)."""
LONG_TEXTS = ("error", "skip", "window")
WINDOWS = "; half-overlapping windows"
"""Added to the convention of a vector where some text was cut into windows."""
SPLIT = "; special-token strings split"
"""Added to the convention of a vector whose texts have no special tokens beyond those that the tokenizer adds."""


@dataclass(frozen=True)
class ReaderOptions:
    """How a model is read. What is None is chosen, and recorded with the vector.

    `device` and `batch_tokens`: for sources that run a model on this machine. `long_texts`: texts beyond the model's
    window raise an error (`error`), are left out (`skip`) or scored in half-overlapping windows (`window`). `parts`:
    what is wanted beside the log-likelihood of each text, by capability (`LAYERS`, `SAMPLED_TOKENS`).
    `split_special_tokens`: a string such as `<s>` in a text is read as text, not as a special token. `template`: how
    the prompts of a set become what is read before the responses (capability `RESPONSES`); None for plain texts.
    """

    device: str | None = None
    batch_tokens: int | None = None
    long_texts: str = "error"
    parts: frozenset[str] = frozenset()
    split_special_tokens: bool = False
    template: Template | None = None


@dataclass(frozen=True)
class Pinned:
    """A reference pinned to what it means now. Vectors of the same `identity` are of the same model: a source makes it
    from a commit, the content of files, or what a server says of itself."""

    ref: ModelRef
    identity: str

    def __str__(self) -> str:
        return str(self.ref)

    @property
    def weights(self) -> list[str]:
        """Names of the files that the weights are read from; none where the source has no files."""
        return []

    @property
    def content(self) -> str:
        """Equal for models whose files hold the same, under whichever name: they have the same vector."""
        return self.identity

    @property
    def files(self) -> str:
        """Equal for models that are read from the same files, such as the quantized variants of one."""
        return self.identity

    @property
    def has_trained_weights(self) -> bool:
        """Whether this is weights as they were trained: no quantized variant, adapter or part of a model."""
        return False

    @property
    def is_fetched(self) -> bool:
        """Whether its files come from elsewhere, to be read here."""
        return False


class Fetched:
    """What a sweep fetches. This class is that of a source that fetches nothing."""

    def reading(self, models: Collection[Any]) -> contextlib.AbstractContextManager[None]:
        """Within, the files of these models are fetched and read."""
        return contextlib.nullcontext()

    def done(self, models: Collection[Any]) -> None:
        """One user needs the files of these models no more."""

    def drop(self) -> None:
        """Drop the files that no user needs any more."""


class Source(ABC):
    """Where log-likelihoods come from. One object serves one call: it may keep connections and tokenized texts.

    `name` is part of a vector's key. `dtypes` and `quantizations` are those that a reference may ask for;
    `capabilities` name what readers can do beside `score`; `convention` says how a text is scored.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]] = ()
    quantizations: ClassVar[tuple[str, ...]] = ()
    capabilities: ClassVar[frozenset[str]] = frozenset()
    convention: ClassVar[str] = CONVENTION

    def __init__(self, progress: Progress = SILENT) -> None:
        self.progress = progress

    @abstractmethod
    def pin(self, ref: ModelRef) -> Any:
        """The model (`Pinned`) that a reference means now. Raises UnavailableError where there is none or it cannot be
        reached, and InputError where what is there is no model."""

    @abstractmethod
    def open(
        self, pinned: Any, options: ReaderOptions = ReaderOptions(), *, alone: threading.Event | None = None
    ) -> Reader:
        """A reader of a pinned model. Another thread may call this while a model is read. `alone` is set as soon as no
        other model is in memory. Raises KlscaleError where the model cannot be used."""

    def conventions(self, options: ReaderOptions) -> tuple[str, ...]:
        """How a vector may have been scored to be the one that is asked for; the last one is that of cut texts."""
        whole = self.convention + SPLIT * options.split_special_tokens
        if options.template is not None:  # which always splits them
            whole = options.template.convention
        return (whole, whole + WINDOWS) if options.long_texts == "window" else (whole,)

    def with_chat_template(self, pinned: Any) -> Any:
        """The pinned model where its own chat template is read too: its identity covers that (capability RESPONSES)."""
        return pinned

    def prepare(self, options: ReaderOptions) -> None:  # noqa: B027 (most sources need none)
        """Raises InputError for options that this machine cannot serve, before any model is read."""

    def may_have(self, ref: ModelRef) -> bool:
        """Whether there may be such a model: a source that does not answer proves nothing."""
        try:
            self.pin(ref)
        except KlscaleError as error:
            return error.exit_status != InputError.exit_status
        return True

    def is_here(self, ref: ModelRef) -> bool:
        """Whether a model can be read without fetching anything, and without asking another machine."""
        return False

    def is_at_hand(self, pinned: Any) -> bool:
        """Whether a pinned model can be opened without fetching anything, and without asking another machine."""
        return self.is_here(pinned.ref)

    def revisions(self, name: str) -> list[str]:
        """The revisions of a model by its name, such as branches and tags. Raises as `pin` does."""
        return []

    def bytes_in_memory(self, pinned: Any) -> int | None:
        """Bytes that the weights of a model take once it is open, as the sizes of its files tell before; 0 where they
        are not in this machine's memory, None where the sizes are not known."""
        return 0

    def to_fetch(self, pinned: Any) -> Mapping[tuple[str, str], int] | None:
        """(place, content) -> bytes of what opening a model would fetch; None where that is not known."""
        return {}

    def fetched(self, users: Iterable[Collection[Any]]) -> Fetched:
        """Manages the files that are fetched for some users. Each user reads a number of pinned models."""
        return Fetched()

    def weight_files(self, pinned: Any) -> list[Path]:
        """The safetensors files of a model's weights, fetched where needed (capability WEIGHT_FILES)."""
        raise self.unsupported(pinned.ref, WEIGHT_FILES)

    def require(self, ref: ModelRef, capability: str) -> None:
        """Raises InputError for a capability that this source does not have."""
        if capability not in self.capabilities:
            raise self.unsupported(ref, capability)

    def unsupported(self, ref: ModelRef, capability: str) -> InputError:
        offered = ", ".join(sorted(self.capabilities)) or "nothing beside log-likelihoods of texts"
        remedy = "A model of transformers (a hub id or a directory) has every capability."
        return InputError(f"{ref}: the source {self.name} has no {capability}.", f"It offers: {offered}.", remedy)

    def require_known(self, ref: ModelRef) -> None:
        """Raises InputError for a quantization or a dtype that this source does not know."""
        default = ModelRef(ref.name).dtype
        for kind, asked, known in (
            ("quantization", ref.quantization, self.quantizations),
            ("dtype", None if ref.dtype == default else ref.dtype, self.dtypes),
        ):
            if asked is not None and asked not in known:
                offered = f"It knows: {', '.join(known)}." if known else f"It offers no choice of {kind}."
                raise InputError(f"{ref}: the source {self.name} has no {kind} {asked}.", offered, f"Give {ref.name}.")


class Reader(ABC):
    """One model, ready to read texts. `window`: the longest text in tokens, None without limit. `attributes`: what is
    known of the model. `device`: where it runs, in words. `draws_tokens`: whether it draws tokens to sample where the
    store has none (capability SAMPLED_TOKENS); else it reads drawn ones alone."""

    draws_tokens: ClassVar[bool] = True

    def __init__(self, source: Source, pinned: Pinned, options: ReaderOptions = ReaderOptions()) -> None:
        self.source, self.pinned, self.options = source, pinned, options
        self.window: int | None = None
        self.attributes: Mapping[str, Any] = {}
        self.device = "cpu"
        self.sampling: Sampling | None = None
        """The texts to sample, and what is drawn for them: given before `score` where the parts ask for it."""

    @property
    def ref(self) -> ModelRef:
        return self.pinned.ref

    @abstractmethod
    def score(self, texts: TextSet, positions: Sequence[int] | Integers) -> Iterator[Scores]:
        """Log-likelihoods in nats of the texts at these positions (n,), a block of them at a time, in any order; with
        the parts that the options ask for.

        Raises InputError for texts that are longer than the window, unless the options say what to do with them, and
        KlscaleError where scoring fails. Blocks that were yielded before that are whole.
        """

    @abstractmethod
    def facts(self, texts: TextSet) -> dict[str, Any]:
        """What the store records with a vector of these texts: `dtype`, `device`, `window`, `versions`, the fraction of
        texts that do not round-trip (`not_round_trip`), how many lose what (`not_round_trip_kinds`), in how many
        a string is read as a special token (`special_token_texts`), and each automatic choice."""

    def convention(self, texts: TextSet) -> str:
        """How these texts are scored."""
        cut = self.options.long_texts == "window" and len(self.fitting(texts)) < len(texts)
        return self.source.conventions(self.options)[-1 if cut else 0]

    def fitting(self, texts: TextSet) -> Integers:
        """Positions (n,) of the texts that fit the window."""
        if self.window is None:
            return np.arange(len(texts))
        return np.flatnonzero(self.tokens(texts).lengths <= self.window)

    def notes(self) -> Iterator[str]:
        """What a user must know of the vector, after texts were scored."""
        yield from ()

    # ------------------------------------------------------------------------------------------------- capabilities

    def tokens(self, texts: TextSet) -> Tokens:
        """All texts as the model reads them."""
        raise self.source.unsupported(self.ref, "tokens")

    def n_read(self, texts: TextSet, positions: Sequence[int] | Integers) -> int | None:
        """Tokens that scoring these texts reads; None for a source that is run again whatever that takes."""
        return None

    def repeat_runs(self, texts: TextSet, positions: Integers, *, padded: bool = True) -> RepeatRuns:
        """Repeat runs of the model on these texts (capability REPEAT_RUNS). `padded`: wider batches too, for which a
        text that leaves no room is cut."""
        raise self.source.unsupported(self.ref, REPEAT_RUNS)

    @property
    def tokenizer_id(self) -> str:
        """Equal for readers of one source that read every text as the same tokens (capability NEXT_TOKENS)."""
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    @property
    def n_vocabulary(self) -> int:
        """How many ids the model gives a probability to, padding included (capability NEXT_TOKENS)."""
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    def compare_next_tokens(
        self,
        other: Any,
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        advance: Callable[[int], None] = lambda _: None,
        *,
        keep: bool = False,
    ) -> NextTokens:
        """Next-token KL between this model and another of the same source and tokenizer, at each scored token of these
        texts, which fit both windows (capability NEXT_TOKENS). `advance` counts the texts that are done. `keep`: this
        model will be compared with others, and need not read a text again.

        Raises KlscaleError where the vocabularies differ, and for a KL that is not finite.
        """
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    def next_token_log_probabilities(self, tokens: Tokens, text: int, take: Callable[[int, Floats], None]) -> None:
        """Log-probabilities of the next token at each scored position of a text that fits the window, a few positions
        at a time: `take` is given the first of these, counted among the scored ones, and (t, V) in nats; maybe twice
        (capability NEXT_TOKENS)."""
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    def sample(
        self,
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        seed: int,
        n_ids: int,
        keep: Keep = lambda *_: None,
        *,
        more: Integers | None = None,
    ) -> Tokens:
        """A text drawn from the model for each of these texts, in their order: it begins as the text does, has as many
        tokens, and uses the first `n_ids` ids. With `more` (n,) it goes on where the text ends, by so many tokens.
        `keep` is given each as soon as it is drawn (capability NEXT_TOKENS)."""
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    def decode(self, tokens: Tokens) -> list[str]:
        """The text that the tokens of each text stand for, special tokens left out, with U+FFFD for bytes that are no
        character (capability NEXT_TOKENS)."""
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    def is_special(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which ids (T,) stand for no text, such as an end of text (capability NEXT_TOKENS)."""
        raise self.source.unsupported(self.ref, NEXT_TOKENS)

    def modules(self) -> list[Module]:
        """The linear layers that can be quantized one by one, in the order of the model (capability
        CHANGED_MODULES)."""
        raise self.source.unsupported(self.ref, CHANGED_MODULES)

    def changed_kl(
        self,
        changes: Sequence[Change],
        tokens: Tokens,
        positions: Sequence[int] | Integers,
        known: Callable[[Change, Integers], bool],
        report: Callable[[Change, Integers, Floats], None],
    ) -> None:
        """Exact next-token KL from this model to itself with each of these `changes`, on texts that fit its window
        (capability CHANGED_MODULES).

        `report` is given a change, some texts (n,) and the KL of each (n,): the sum over its scored tokens in nats.
        What is `known` of a change and some texts is not computed. The model is left as it was, also by Ctrl-C. Raises
        KlscaleError for a KL that is not finite, and for a weight that its kind cannot hold.
        """
        raise self.source.unsupported(self.ref, CHANGED_MODULES)

    def weights(self) -> Mapping[str, Any]:
        """The weights in memory as torch tensors by name, which may be changed in place (capability WEIGHTS)."""
        raise self.source.unsupported(self.ref, WEIGHTS)


class RepeatRuns(ABC):
    """Repeat runs of one model on some texts, which differ by rounding alone. `bytes` (n,) counts what is read of each
    text; where `cut` is true, some texts are not read to their end."""

    bytes: Integers
    cut: bool = False

    @property
    def n_read(self) -> int:
        """Tokens that a run in batches of another shape and order reads, padding included; where `Reader.n_read` is
        known."""
        raise NotImplementedError

    @abstractmethod
    def read(self, *, batches: bool = False, order: bool = False) -> Scores:
        """Log-likelihoods in nats of the texts: in `batches` of another shape, in another `order` of texts. With
        neither this is the usual run."""


@dataclass(frozen=True)
class Module:
    """A linear layer: its `name`, the number of its `block` (None: it is in no block), its number of weights, and the
    bytes of codes and scales by each kind that can hold it."""

    name: str
    block: int | None
    n_weights: int
    stored_bytes: Mapping[str, int]


@dataclass(frozen=True)
class Change:
    """Modules that are changed together, (module, kind) each: the weights are quantized; or, for `noise`, normal
    random numbers are added that have the norm of the quantization error of each weight."""

    name: str
    kinds: tuple[tuple[str, str], ...]
    noise: bool = False


@dataclass(frozen=True, eq=False)
class NextTokens:
    """What two models a and b predict at the T scored tokens of some texts, in the order of texts and positions.

    `text` (T,) is the text of each token; `forward` and `backward` (T,) are KL(p_a || p_b) and KL(p_b || p_a) in nats
    of the distributions that predict it; `same_top` (T,) says whether their most probable tokens are the same;
    `top` (T,) is the probability that a gives to its most probable token; `log_likelihood` (2, T) is that of the token
    itself in nats, under a and b. `left_out` is the largest probability that either model gives, anywhere, to ids that
    the other does not have.
    """

    text: Integers
    forward: Floats
    backward: Floats
    same_top: NDArray[np.bool_]
    top: Floats
    log_likelihood: Floats
    left_out: float


def within_window(
    ref: ModelRef, window: int | None, lengths: Integers, positions: Sequence[int] | Integers, long_texts: str
) -> Integers:
    """The texts (n,) among these positions that are to be scored, given the tokens (N,) of all texts. Raises InputError
    where one is longer than the window and `long_texts` is `error`."""
    chosen = np.asarray(positions, dtype=np.int64)
    long = chosen[lengths[chosen] > window] if window is not None else chosen[:0]
    if len(long) and long_texts == "error":
        raise InputError(
            f"{len(long):,} texts are longer than the window of {ref} ({window:,} tokens).",
            f"The first is text {long[0]} with {lengths[long[0]]:,} tokens; cut short, it would not be comparable.",
            "Use --long-texts window, or --long-texts skip.",
        )
    return np.setdiff1d(chosen, long) if long_texts == "skip" else chosen


def require_one_tokenizer(a: Reader, b: Reader) -> None:
    """Raises InputError for two models that do not read texts as the same tokens: they have no next token in common."""
    if a.source.name != b.source.name or a.tokenizer_id != b.tokenizer_id:
        raise InputError(
            f"{a.ref} and {b.ref} have different tokenizers.",
            "Exact KL compares distributions over the same next tokens.",
            "Their KL can be estimated all the same: klscale compare.",
        )


class Sources:
    """The sources of one call, each made when a reference first needs it. All models are pinned and opened here, so
    that a dtype, a quantization or a capability that a source does not know is refused in one place."""

    def __init__(self, progress: Progress = SILENT) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._made: dict[str, Source] = {}

    def of(self, ref: ModelRef) -> Source:
        """The source that a reference names. Raises InputError for a scheme that no source has."""
        with self._lock:
            if ref.scheme not in self._made:
                self._made[ref.scheme] = source_class(ref)(self._progress)
            return self._made[ref.scheme]

    def pin(self, ref: ModelRef) -> Any:
        """The model that a reference means now (`Pinned`). Raises InputError for a dtype or a quantization that its
        source does not know, else as `Source.pin` does."""
        source = self.of(ref)
        source.require_known(ref)
        return source.pin(ref)

    def open(
        self, pinned: Pinned, options: ReaderOptions = ReaderOptions(), *, alone: threading.Event | None = None
    ) -> Reader:
        """A reader of a pinned model. Raises InputError for parts that its source does not give, else as `Source.open`
        does."""
        source = self.of(pinned.ref)
        for part in sorted(options.parts):
            source.require(pinned.ref, part)
        return source.open(pinned, options, alone=alone)


def source_class(ref: ModelRef) -> type[Source]:
    """The class of the source that a reference names. Raises InputError for a scheme that no source has."""
    if ref.scheme not in SOURCES:
        why = nearest(ref.scheme, [scheme for scheme in SOURCES if scheme])
        remedy = "A hub id or a directory has no scheme."
        raise InputError(f"{ref}: there is no source of the scheme {ref.scheme!r}.", why, remedy)
    module, name = SOURCES[ref.scheme].split(":")
    found: type[Source] = getattr(import_module(module), name)
    return found


def options_of(query: str, known: Iterable[str], place: object, example: str) -> dict[str, str]:
    """The options behind the ? of an address, by name. Raises InputError for one that is not known; it names the
    `place`, and not the value, which may be a secret."""
    found = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := found.keys() - {*known}:
        raise InputError(f"{place}: there is no option {min(unknown)!r}.", nearest(min(unknown), known), example)
    return found


@cache
def versions(*packages: str) -> Mapping[str, str]:
    """The versions of Python, klscale and these packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("klscale", *packages)}}
