"""The engine: batches of texts through a model, log-likelihoods out. The hot path of the whole package.

Texts are sorted by length and cut into the right-padded batches that take the least time under a token budget. A
causal model needs no attention mask for padding on the right. The forward pass is stopped where the hidden states enter
the output embedding, and `head` reads the log-probabilities of the targets off them in tiles: full logits of a batch
never exist.
"""

from __future__ import annotations

import gc
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klscale.errors import KlscaleError
from klscale.science.arrays import Floats, Integers
from klscale.sources.source import within_window
from klscale.sources.tokens import Segment, Tokens, segments_of
from klscale.sources.transformers.cache import cache_of, require_cache
from klscale.sources.transformers.head import OutputHead, candidate_heads, in_float64, widened
from klscale.sources.transformers.load import LoadedModel
from klscale.sources.transformers.pieces import PIECE, empty_cache, longest_without_matrix, windows_of
from klscale.sources.transformers.placement import device_of
from klscale.sources.transformers.prefixes import Group, Prefix, groups_of, holds_all
from klscale.sources.transformers.readout import Readout, find_readout, no_lens
from klscale.sources.transformers.sampling import Sampled, TileSampler, Wanted
from klscale.sources.transformers.streams import held_by, n_streams, same, streams
from klscale.vectors.draws import Sampling
from klscale.vectors.scores import Scores, Values

T = TypeVar("T")

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest mean difference in nats a token from the model's own logits that rounding explains."""

LENS_TOLERANCE = 1e-3
"""Largest difference in nats a text between the last layer through the lens and the model itself, in float32."""

FEWEST_PADDING = 16
"""Columns by which the batches of a repeat run are wider: with fewer, kernels may sum in the same order. On a CPU in
bfloat16, 1 changed nothing, 4 a thousandth of the noise in variance, 16 to 64 all of it."""

BATCH_COST = {"cpu": 24, "cuda": 512}
"""What a batch costs beside its tokens, in tokens: the weights are read once for it. That is the ratio of the rate of
products to that of memory, whatever the model. Measured with 135M parameters on CPUs: one batch at a time in float32
31, two at once 16 to 22, in bfloat16 27 to 33."""

KEPT = 2**30
"""Bytes of hidden states that a model that is compared with several others may keep."""

CHECKED = 16
"""Tokens of one text on which the head is compared with the model's own logits."""

HOOKS = threading.Lock()
"""Held while a hook comes or goes: torch numbers hooks without one, and two threads could get the same number."""


class Engine:
    """Scores texts with one model; with `layers` at every layer too, through the logit lens. `batch_tokens` is the
    budget of a batch, padding included (None: found).

    Three options are for repeat runs, which differ by rounding alone. `shuffled`: texts come in random order instead of
    by length, so that each has other neighbours. `padded`: every batch is wider than its texts need, by an eighth and
    at least 16 tokens; a kernel then sums in another order. `fewest`: texts are put into as few batches as can be.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        device: str | None = None,
        batch_tokens: int | None = None,
        layers: bool = False,
        shuffled: bool = False,
        padded: bool = False,
        fewest: bool = False,
    ) -> None:
        self.loaded = loaded
        self.layers = layers
        self.shuffled, self.padded, self.fewest = shuffled, padded, fewest
        self.readout: Readout | None = None
        """Reads layers; None before the first batch."""
        self.lens_error: float | None = None
        """Largest difference in nats a text between the last layer, read through the lens, and the model itself, on the
        first batch; later ones take the model's own values."""
        self.device = device_of(device)
        self.model = loaded.model
        try:
            if loaded.offload is None and self.model.device != self.device:
                self.model.to(self.device)
        except torch.OutOfMemoryError as error:
            raise KlscaleError(
                f"{loaded.ref} does not fit into the memory of {self.device}.",
                str(error).split("\n")[0],
                "Use --device cpu, or a smaller dtype: %bfloat16.",
            ) from error
        self.batch_tokens = batch_tokens or self._budget()
        self.sampling: Sampling | None = None
        """The texts to sample beside; None for none."""
        self.head: OutputHead | None = None
        """Reads hidden states; None before the first batch, and for good where only the model's own logits will do."""
        self.own_logits = False
        self.keeps_nothing = False
        """Whether no module keeps anything of a forward pass, so that two passes at once are as two in turn. Found with
        the head."""
        self.prefix: Prefix | None = None
        """What stands before the segments of a batch, where they share a beginning that is read once."""
        self.kept: KeptStates | None = None
        """What was read for `next_token_logits`, and need not be read again; None where nothing is kept."""
        self.reads_behind: bool | None = None
        """Whether texts can be read behind such a beginning; None before there was one."""
        self.shared_tokens = 0
        """Tokens that were not read, as another text begins with the same."""
        self.reads_pieces: bool | None = None
        """Whether long texts can be read in pieces; None before there was one that should be."""
        self.kernel = None if loaded.quantization is None or loaded.quantization.weights_only else loaded.quantization
        self.tolerance = 0.1 if self.kernel else TOLERANCE.get(self.model.dtype, 0.1)
        config = self.model.config.get_text_config()
        self.alone = self.kernel is not None and self.kernel.kind == "int8-kernel"
        """Whether a text's value would depend on what is beside it: the kernel chooses outliers by the whole batch."""
        rope = getattr(config, "rope_parameters", None) or {}
        self.stretches_beyond: int | None = None
        if rope.get("rope_type") in ("dynamic", "longrope"):
            original = rope.get("original_max_position_embeddings")
            self.stretches_beyond = int(original or getattr(config, "original_max_position_embeddings", None) or 0)

    def _budget(self) -> int:
        """Tokens a batch: what a CPU's cache holds; half of the free memory on a GPU, for some 40 live activations."""
        hidden = getattr(self.model.config.get_text_config(), "hidden_size", 4096)
        if self.device.type != "cuda":
            return int(np.clip(2**20 // hidden, 2048, 8192))
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(np.clip(0.5 * free / (40 * hidden * self.model.dtype.itemsize), 2048, 131072))

    def again(self, batch_tokens: int, **options: bool) -> Engine:
        """An engine of the same model for a repeat run, with these options. What is known of the model is not found
        out again."""
        engine = Engine(self.loaded, device=str(self.device), batch_tokens=batch_tokens, **options)
        engine.head, engine.own_logits, engine.reads_behind = self.head, self.own_logits, self.reads_behind
        engine.reads_pieces, engine.keeps_nothing = self.reads_pieces, self.keeps_nothing
        return engine

    def n_read(self, tokens: Tokens, texts: Sequence[int] | Integers, *, padding: bool = False) -> int:
        """Tokens of the forward passes over these texts, as whole texts or behind a beginning that is read once; with
        or without the `padding` of batches."""
        lengths, before, total = tokens.lengths, tokens.before, 0
        for group in self._groups(tokens, [Segment(s, 0, int(lengths[s]), int(before[s])) for s in map(int, texts)]):
            total += group.n
            if not padding:
                total += sum(part.n_own for part in group.parts)
                continue
            queue = queued((self,), group.parts)
            for n_rows in cuts((self,), queue):
                total += n_rows * self._width(queue[:n_rows])
                del queue[:n_rows]
        return total

    def other_budget(self, tokens: Tokens, texts: Sequence[int] | Integers) -> int:
        """A budget in tokens that puts these texts into batches of another shape, each of two texts at least."""
        lengths = tokens.lengths[texts]
        return max(min(self.batch_tokens, int(lengths.sum())) // 2, 2 * int(lengths.max()))

    @property
    def longest_padded(self) -> int | None:
        """Tokens of the longest text that leaves room for all of the padding of `padded`; None where any does."""
        limit = self._widest
        return None if limit is None else max(1, min(limit * 8 // 9, limit - FEWEST_PADDING))

    @property
    def _widest(self) -> int | None:
        limits = [limit for limit in (self.loaded.window, self.stretches_beyond) if limit is not None]
        return min(limits, default=None)

    def widths(self, longest: Integers) -> Integers:
        """Columns (n,) of batches whose longest texts have so many tokens."""
        if not self.padded or self.alone:
            return longest
        wide = longest + np.maximum(longest // 8, FEWEST_PADDING)
        return wide if self._widest is None else np.maximum(longest, np.minimum(wide, self._widest))

    @property
    def batch_cost(self) -> int:
        """What a batch costs beside its tokens, in tokens; with `fewest`, so much that there are as few as can be."""
        return self.batch_tokens if self.fewest else self._cost_of_pass

    @property
    def _cost_of_pass(self) -> int:
        return BATCH_COST.get(self.device.type, 512)

    def fits(self, lengths: Integers) -> NDArray[np.bool_]:
        """Whether the first 1, 2, ... n of texts with these `lengths` (n,) may share a batch; one alone always may.
        Rotary embeddings that stretch with the input (`dynamic`, `longrope`) would give a text its neighbours' length:
        beyond their original window, equal lengths only."""
        longest = np.maximum.accumulate(lengths)
        found = np.arange(1, len(lengths) + 1) * self.widths(longest) <= self.batch_tokens
        if self.stretches_beyond is not None:
            found &= (longest <= self.stretches_beyond) | (longest == np.minimum.accumulate(lengths))
        if self.alone or self.own_logits:  # these are made for one text at a time
            found[:] = False
        found[:1] = True
        return found

    def score(self, tokens: Tokens, texts: Sequence[int] | Integers, *, long_texts: str = "error") -> Iterator[Scores]:
        """Log-likelihoods of these texts, some at a time, longest first unless `shuffled`. Texts longer than the window
        raise InputError, are left out (`skip`), or are scored in half-overlapping windows (`window`).

        Raises KlscaleError for logits that are not finite, when one text alone exhausts the memory, and for layers of a
        model that the logit lens does not fit.
        """
        lengths, before, counts = tokens.lengths, tokens.before, tokens.counts
        window = self.loaded.window
        kept = within_window(self.loaded.ref, window, lengths, texts, long_texts)
        queue = [part for s in kept for part in segments_of(int(s), int(lengths[s]), window, int(before[s]))]
        waiting = Counter(part.text for part in queue)
        total: dict[int, Any] = dict.fromkeys(waiting, 0.0)
        pieces: dict[int, list[tuple[int, Floats]]] = {}
        sampled: dict[int, list[tuple[int, Sampled]]] = {}
        for batch, read in self._batches(tokens, queue):
            done, at, n_sampled = list[int](), 0, 0
            for part, value in zip(batch, read.log_likelihood, strict=True):
                if not np.isfinite(value).all():
                    raise self._not_finite(value, part.text)
                total[part.text] = total[part.text] + value
                n_tokens = part.stop - part.first
                pieces.setdefault(part.text, []).append((part.first, read.token_log_probability[at : at + n_tokens]))
                at += n_tokens
                if read.sampled is not None and self._samples(part.text):
                    positions = slice(n_sampled, n_sampled + n_tokens)
                    sampled.setdefault(part.text, []).append((part.first, read.sampled.at(positions)))
                    n_sampled += n_tokens
                waiting[part.text] -= 1
                if not waiting[part.text]:
                    done.append(part.text)
            if done:
                chosen, found = np.array(done), np.stack([total.pop(s) for s in done])
                ordered = [piece for s in done for piece in in_order(pieces.pop(s))]
                parts = tokens.parts(chosen, np.concatenate(ordered), found[:, -1])
                if self.sampling is not None:
                    joined = {s: Sampled.joined(in_order(sampled.pop(s))) for s in done if self._samples(s)}
                    parts |= _sampled_parts(self.sampling, chosen, joined)
                yield Scores(chosen, found[:, -1], counts[done], parts | ({"layers": found} if self.layers else {}))

    def _batches(self, tokens: Tokens, queue: Sequence[Segment]) -> Iterator[tuple[Sequence[Segment], BatchScores]]:
        """Batches of a queue and their values. A beginning that several texts share is read once."""
        groups = self._groups(tokens, queue)
        if self.shuffled:
            groups = [groups[place] for place in np.random.default_rng(0).permutation(len(groups))]
        for group in groups:
            self.shared_tokens += group.n * (len(group.parts) - 1)
            several = not group.n and self._reads_several(tokens, group.parts)
            try:
                yield from in_batches(
                    (self,), group.parts, lambda batch: self._score_batch(tokens, batch), several=several
                )
            finally:
                self.prefix = None

    def _groups(self, tokens: Tokens, queue: Sequence[Segment]) -> list[Group]:
        """A queue by the beginnings that are read once; one group where none are."""
        whole = [Group(0, queue)]
        if not self._continues:
            return whole
        # A group takes a forward pass more, and its texts cannot fill up the batches of others.
        found = groups_of(tokens, queue, 2 * self._cost_of_pass, within_prompts=self.layers)
        return found if any(group.n for group in found) and self._reads_behind(tokens, found) else whole

    def _reads_several(self, tokens: Tokens, parts: Sequence[Segment]) -> bool:
        """Whether several batches may be read at once: on a CPU, by a model with plain weights in memory, whose modules
        keep nothing of a pass. Layers are read by hooks on the modules, which all passes share."""
        plain = self.device.type == "cpu" and self._continues and self.kernel is None
        if not plain or self.layers or not parts or n_streams() == 1:
            return False
        longest = max(parts, key=lambda part: part.length)
        ((_, found),) = in_batches((self,), [longest], lambda _: self._knows_head(tokens, longest))
        return found and self.keeps_nothing

    @torch.inference_mode()
    def _knows_head(self, tokens: Tokens, part: Segment) -> bool:
        self.find_head(tokens, part)
        return self.head is not None

    @property
    def _continues(self) -> bool:
        """Whether a text may be read in several passes, each behind the keys and values of those before."""
        stretches = self.stretches_beyond is not None
        return not (self.loaded.cache_bits or self.loaded.offload or stretches or self.alone)

    def _reads_behind(self, tokens: Tokens, groups: Sequence[Group]) -> bool:
        """Whether the model gives its own log-probabilities behind the cache of a beginning, by one of the longest
        texts."""
        if self.reads_behind is None:
            group = next(group for group in groups if group.n)
            part = max(group.parts, key=lambda part: part.length)
            ((_, self.reads_behind),) = in_batches((self,), [part], lambda _: self._agrees_behind(tokens, part))
        return self.reads_behind

    @torch.inference_mode()
    def _agrees_behind(self, tokens: Tokens, part: Segment) -> bool:
        self.find_head(tokens, part)
        if self.own_logits:
            return False
        try:
            own, behind = self._token_values(tokens, replace(part, behind=0)), self._token_values(tokens, part)
            plain = self.prefix is not None and self.prefix.is_plain
        except Exception as error:  # whatever a model does with a cache that is not its own
            if _out_of_memory(error):
                raise
            return False
        finally:
            self.prefix = None
        return bool(plain and np.abs(own - behind).mean() <= self.tolerance)

    def _token_values(self, tokens: Tokens, part: Segment) -> Floats:
        """Log-probabilities in nats of the scored tokens of one segment. The head is found."""
        assert self.head is not None
        packed = self._pack(tokens, [part])
        return packed.read(self.head, self._final_states(packed, self._cache(tokens, [part], packed)))

    def _samples(self, text: int) -> bool:
        return self.sampling is not None and text in self.sampling.wanted

    def _sampler(
        self, tokens: Tokens, batch: Sequence[Segment], n_vocabulary: int, width: int, device: torch.device
    ) -> TileSampler | None:
        """Reads what is sampled off the tiles of a batch, `width` columns each; None where nothing is."""
        chosen = [part for part in batch if self._samples(part.text)]
        if self.sampling is None or not chosen:
            return None
        sampling, seen = self.sampling, self.sampling.seen(tokens.ids, n_vocabulary)
        drawn = all(part.text in sampling.draws.of for part in chosen)
        n_tiles = 0 if drawn else -(-n_vocabulary // width)
        counts = [part.stop - part.first for part in batch]
        places = np.flatnonzero(np.repeat([self._samples(part.text) for part in batch], counts))
        before, n_tokens = tokens.before, tokens.counts
        wanted = [
            Wanted.of(sampling, part.text, int(n_tokens[part.text]) - 1, seen, n_tiles).at(
                slice(part.first - int(before[part.text]), part.stop - int(before[part.text]))
            )
            for part in chosen
        ]
        return TileSampler(places, Wanted.joined(wanted), seen, width, device)

    def _remedy(self) -> str:
        if self.kernel is None:
            return "Does the tokenizer belong to the model?"
        if self.loaded.ref.quantization is None:
            return "Its kernel may not run on this machine: score it on another, or the model that it was made from."
        alone = self.kernel.kind.removesuffix("-kernel")
        return f"A kernel may not know this shape on this machine: +{alone} scores the quantized weights without it."

    def _not_finite(self, values: Floats, text: int) -> KlscaleError:
        layer = int(np.argmin(np.isfinite(values)))
        at = f" at layer {layer}" if layer < len(values) - 1 else ""
        ref, what = self.loaded.ref, f"{self.loaded.ref} gives a log-likelihood of {values[layer]} for text {text}{at}."
        for name, parameter in self.model.named_parameters():
            if not parameter.is_meta and not parameter.isfinite().all():
                return KlscaleError(
                    what,
                    f"Its weights hold values that are not finite, first in {name}.",
                    f"They are damaged, or too large for {ref.dtype}: fetch or save them again, or use %float32.",
                )
        remedy = "Score it as %bfloat16, which has the range of float32, or as %float32."
        if ref.dtype != "float16":
            remedy = "Check that the weights belong to this configuration."
        return KlscaleError(what, f"Its weights are finite, its logits overflow in {ref.dtype}.", remedy)

    def _halve(self, batch: Sequence[Segment]) -> None:
        if len(batch) == 1:
            raise KlscaleError(
                f"{self.loaded.ref}: out of memory on {self.device} with one text of {batch[0].length:,} tokens.",
                "A batch of one text is the smallest there is.",
                "Use a smaller dtype (%bfloat16), another --device, or shorter texts.",
            )
        self.batch_tokens = len(batch) * max(part.length for part in batch) // 2
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    # ---------------------------------------------------------------------------------------------------- one batch

    @torch.inference_mode()
    def _score_batch(self, tokens: Tokens, batch: Sequence[Segment]) -> BatchScores:
        self.find_head(tokens, batch[-1])
        packed = self._pack(tokens, batch)
        if self.layers and self.readout is None:
            if self.head is None:
                raise no_lens(self.loaded.ref, "Its output head is of an unknown kind.")
            inputs = packed.inputs[-1:, :PIECE]
            self.readout = find_readout(self.model, lambda: self._hidden_states(inputs), self.loaded.ref)
        if self.head is None:
            return self._score_by_own_logits(tokens, packed, batch)
        head, cache = self.head, self._cache(tokens, batch, packed)
        sampler = self._sampler(tokens, batch, len(head.weight), head.width, head.weight.device)
        if not len(packed.owner):
            n_readouts = 1 if self.readout is None else len(self.readout.blocks) + 1
            found, own = np.zeros((len(batch), n_readouts)), np.empty(0)
        elif self.readout is None:
            own = packed.read(head, self._final_states(packed, cache), sampler=sampler)
            found = packed.sums(own)[:, None]
        else:
            run = partial(self._final_states, packed, cache)
            found, own = self._read_layers(packed, head, self.readout, run, sampler)
        return BatchScores(found, own, None if sampler is None else sampler.found())

    def _score_by_own_logits(self, tokens: Tokens, packed: Packed, batch: Sequence[Segment]) -> BatchScores:
        """The same, without a head: one text after another."""
        scored, sampled = [np.empty(0)], list[Sampled]()
        for row, part in zip(packed.inputs, batch, strict=True):
            logits, target = self._own_logits(row[: part.length]), row[1 : part.length, None]
            mass, first = logits.logsumexp(dim=1), part.first - part.start - 1
            scored.append(in_float64(logits.gather(1, target)[:, 0] - mass)[first:])
            if sampler := self._sampler(tokens, [part], logits.shape[1], logits.shape[1], logits.device):
                sampler.see(slice(0, len(logits) - first), 0, logits[first:], mass[first:])
                sampled.append(sampler.found())
        own = np.concatenate(scored)
        return BatchScores(packed.sums(own)[:, None], own, Sampled.joined(sampled) if sampled else None)

    def _read_layers(
        self,
        packed: Packed,
        head: OutputHead,
        readout: Readout,
        run: Callable[[], Tensor],
        sampler: TileSampler | None,
    ) -> tuple[Floats, Floats]:
        """Log-likelihood (rows, L + 1) at each layer, read as the forward pass `run` reaches it, piece by piece; and
        the log-probabilities (t,) of the scored tokens."""
        last, found, column = len(readout.blocks), dict[int, Floats](), 0

        def see(layer: int, hidden: Tensor) -> None:
            nonlocal column
            piece = packed.columns(column, column + hidden.shape[1])
            if len(piece.owner) and (layer < last or self.lens_error is None):
                found[layer] = found.get(layer, 0.0) + piece.sums(piece.read(head, hidden, readout))
            if layer == last:
                column += hidden.shape[1]

        self._columns_at_once(packed.inputs)  # what is read to know this is not watched
        with readout.watching(see):
            final = run()
        token_log_probability = packed.read(head, final, sampler=sampler)
        own = packed.sums(token_log_probability)
        if self.lens_error is None:
            self._check_lens(found[last] - own, np.bincount(packed.owner, minlength=len(own)))
        found[last] = own
        return np.stack([found[layer] for layer in range(last + 1)], axis=1), token_log_probability

    def _check_lens(self, difference: Floats, n_tokens: Integers) -> None:
        """The last layer through the lens is the model itself, or the lens is wrong for it."""
        self.lens_error = float(np.abs(difference).max())
        exact = self.model.dtype == torch.float32 and not self.kernel
        if (np.abs(difference) > (LENS_TOLERANCE if exact else self.tolerance * n_tokens)).any():
            why = f"Its last layer read so is off by {self.lens_error:.2g} nats a text from the model's own values."
            raise no_lens(self.loaded.ref, why)

    def _pack(self, tokens: Tokens, batch: Sequence[Segment]) -> Packed:
        return Packed.of(tokens, batch, self._width(batch), self.device)

    def _width(self, batch: Sequence[Segment]) -> int:
        """Columns of a batch."""
        return int(self.widths(np.array([part.n_own for part in batch])).max())

    def _cache(self, tokens: Tokens, batch: Sequence[Segment], packed: Packed) -> Any:
        """A cache that holds what the segments of a batch are read behind, which is read where it is not yet; None for
        nothing."""
        n = batch[0].behind
        if not n:
            return None
        if self.prefix is None:
            ids = torch.from_numpy(tokens.of(batch[0].text)[:n].astype(np.int64))
            self.prefix = Prefix(ids[None].to(self.device), self._hidden_states)
        in_pieces = self._columns_at_once(packed.inputs) < packed.inputs.shape[1]
        return self.prefix.cache(len(batch), keeps=in_pieces)

    def _final_states(self, packed: Packed, cache: Any) -> Tensor:
        """What enters the output embedding, (batch, tokens, H); behind a beginning of n tokens (1, batch x tokens + n,
        H), with its own states last."""
        hidden = self._hidden_states(packed.inputs, cache)
        if cache is None or self.prefix is None:
            return hidden
        return torch.cat([hidden.flatten(0, 1), self.prefix.hidden])[None]

    def _hidden_states(self, inputs: Tensor, cache: Any = None) -> Tensor:
        """What enters the output embedding, (batch, tokens, H): of one pass, or of pieces."""
        if self._columns_at_once(inputs) == inputs.shape[1]:
            return self._one_pass(inputs, cache)
        return self._in_pieces(inputs, empty_cache(self.model.config) if cache is None else cache)

    def _in_pieces(self, inputs: Tensor, cache: Any) -> Tensor:
        """The same of pieces, each behind what the cache holds; it is added to that."""
        return torch.cat([self._one_pass(piece, cache) for piece in torch.split(inputs, PIECE, dim=1)], dim=1)

    def _columns_at_once(self, inputs: Tensor) -> int:
        """Columns of a batch (rows, tokens) that one pass reads: all of them, or a piece."""
        n, config = inputs.shape[1], self.model.config
        if n <= 2 * PIECE or not self._continues or self.head is None or n <= longest_without_matrix(config):
            return n
        if self.reads_pieces is None:
            self.reads_pieces = self._agrees_in_pieces(inputs[:1])
        return PIECE if self.reads_pieces else n

    def _agrees_in_pieces(self, ids: Tensor) -> bool:
        """Whether the model gives its own log-probabilities when it reads a text in pieces, by a text `ids` (1, n), cut
        or repeated so that it is a piece longer than any sliding window."""
        assert self.head is not None
        config, limit = self.model.config, self.loaded.window
        n = PIECE + max([PIECE, *windows_of(config)])
        n = n if limit is None else min(n, limit)
        ids = ids.repeat(1, -(-n // ids.shape[1]))[:, :n]
        try:
            cache = empty_cache(config)
            states = self._one_pass(ids), self._in_pieces(ids, cache)
        except Exception as error:  # whatever a model does with a cache
            if _out_of_memory(error):
                raise
            return False
        own, found = (self.head.log_likelihood(hidden[0, :-1], ids[0, 1:]) for hidden in states)
        return bool(holds_all(cache.layers, n) and (own - found).abs().mean() <= self.tolerance)

    def _one_pass(self, inputs: Tensor, cache: Any = None) -> Tensor:
        """What enters the output embedding, (batch, tokens, H): the forward pass is stopped there."""
        here = threading.get_ident()

        def stop(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if threading.get_ident() == here:  # another thread may have a pass of its own
                raise _ReachedHeadError(arguments[0] if arguments else next(iter(keywords.values())))

        with HOOKS:
            handle = self.model.get_output_embeddings().register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._forward(inputs, cache)
        except _ReachedHeadError as reached:
            return reached.hidden
        finally:
            with HOOKS:
                handle.remove()
        raise KlscaleError(f"{self.loaded.ref} does not call its output embedding.")

    def _from_own_logits(self, ids: Tensor) -> Tensor:
        """Log-probabilities (n - 1,) of tokens 2 to n of one text `ids` (n,), from the model's own full logits."""
        logits = self._own_logits(ids)
        return logits.gather(1, ids[1:, None])[:, 0] - logits.logsumexp(dim=1)

    def _own_logits(self, ids: Tensor) -> Tensor:
        """The model's own full logits (n - 1, V) after tokens 1 to n - 1 of one text `ids` (n,)."""
        return widened(self._forward(ids[None]).logits[0, :-1])

    def _forward(self, inputs: Tensor, cache: Any = None) -> Any:
        """What the model returns for ids (batch, tokens), behind what a cache holds."""
        if cache is None and self.loaded.cache_bits is not None:
            cache = cache_of(self.model, self.loaded.cache_bits)
        if cache is None:
            return self.model(input_ids=inputs, use_cache=False)
        return self.model(input_ids=inputs, past_key_values=cache, use_cache=True)

    def next_token_logits(self, packed: Packed, texts: Sequence[tuple[str, int]] = ()) -> Callable[[slice], Tensor]:
        """Runs a batch; what is returned gives the logits (t, V) of any t of its scored tokens. The head is found.
        Where states are kept, they are of these `texts`, a row each: (key of the tokens, position)."""
        if self.head is None:
            (row,) = packed.inputs  # in a batch of its own
            own = self._own_logits(row)[packed.before.to(row.device)]
            return lambda part: own[part]
        head = self.head
        known = None if self.kept is None else self.kept.of(texts)
        if known is not None:
            return lambda part: head.logits(known[part].to(head.weight.device), 0, len(head.weight))
        hidden = self._hidden_states(packed.inputs).flatten(0, 1)
        if self.kept is not None and texts:
            scored = hidden[packed.before.to(hidden.device)]
            counts = np.bincount(packed.owner, minlength=len(texts)).tolist()
            self.kept.add(texts, torch.split(scored, counts))
        return lambda part: head.logits(
            hidden[packed.before[part].to(hidden.device)].to(head.weight.device), 0, len(head.weight)
        )

    def find_head(self, tokens: Tokens, part: Segment) -> None:
        """Once, keep the head that gives the model's own log-probabilities on one text; none does: use its own logits.

        Raises KlscaleError for a model in which tokens see what follows them.
        """
        if self.head is not None or self.own_logits:
            return
        found = tokens.of(part.text)[part.start : part.stop][:CHECKED].astype(np.int64)  # their logits are few
        ids = torch.from_numpy(np.resize(found, max(len(found), 8))).to(self.device)
        if self.loaded.cache_bits is not None:
            require_cache(self.model, ids, self.loaded.ref)
        own = self._from_own_logits(ids)
        heads, held = self._candidate_heads(), held_by(self.model)
        if heads:
            # Behind a neighbour and padding, as in a batch, so that the check covers those too, and what tokens see.
            padded = torch.nn.functional.pad(ids, (0, 3)).expand(2, -1)
            hidden = self._hidden_states(padded)[1, : len(ids) - 1]
            self.keeps_nothing = same(held_by(self.model), held)
            for head in heads:
                if (head.log_likelihood(hidden, ids[1:]).to(own.device) - own).abs().mean() <= self.tolerance:
                    self.head = head
                    return
        changed = ids.clone()
        changed[-1] = (ids[-1] + 1) % 2
        if (self._from_own_logits(changed)[:-1] - own[:-1]).abs().mean() > self.tolerance:
            raise KlscaleError(
                f"{self.loaded.ref} is not a causal language model.",
                "The probability of a token changes with the tokens after it.",
                "Only decoder models have log-likelihoods of texts.",
            )
        self.own_logits = True

    def _candidate_heads(self) -> list[OutputHead]:
        if self.loaded.offload is None:
            return list(candidate_heads(self.model))
        from accelerate.utils import align_module_device

        with align_module_device(self.model.get_output_embeddings()):  # brought in once, and held by the head
            return list(candidate_heads(self.model))


def cuts(engines: Sequence[Engine], queue: Sequence[Segment]) -> list[int]:
    """How many of these segments, in their order, each batch takes, so that all columns and the costs of the batches
    are the fewest in sum; every batch suits every engine.

    What is best for the first segments of a queue does not change what is best for the rest: after a kill the
    remaining texts come in the same batches as without.
    """
    lengths = np.array([part.length for part in queue], dtype=np.int64)
    own = np.array([part.n_own for part in queue], dtype=np.int64)
    cost_of_batch, budget = max(engine.batch_cost for engine in engines), min(engine.batch_tokens for engine in engines)
    rest, rows = np.zeros(len(queue) + 1), np.ones(len(queue), dtype=np.int64)
    for start in reversed(range(len(queue))):
        ahead = lengths[start : start + max(1, budget // int(lengths[start]))]
        longest = np.maximum.accumulate(own[start : start + len(ahead)])
        columns = np.arange(1, len(ahead) + 1) * engines[0].widths(longest)
        cost = columns + cost_of_batch + rest[start + 1 : start + 1 + len(ahead)]
        for engine in engines:
            cost[~engine.fits(ahead)] = np.inf
        rows[start] = 1 + int(cost.argmin())
        rest[start] = cost.min()
    found, start = list[int](), 0
    while start < len(queue):
        found.append(int(rows[start]))
        start += found[-1]
    return found


def queued(engines: Sequence[Engine], parts: Iterable[Segment]) -> list[Segment]:
    """The segments in the order in which batches take them: longest first, unless `shuffled`."""
    queue = sorted(parts, key=lambda part: (-part.length, part.text))
    if engines[0].shuffled:
        return [queue[place] for place in np.random.default_rng(0).permutation(len(queue))]
    return queue


def in_batches(
    engines: Sequence[Engine],
    parts: Iterable[Segment],
    read: Callable[[Sequence[Segment]], T],
    *,
    several: bool = False,
) -> Iterator[tuple[Sequence[Segment], T]]:
    """Batches of all parts that suit every one of these engines, longest first, and what `read` makes of each. With
    `several` some are read at once, in threads; a text beyond the budget is not. Out of memory: from there on one at a
    time, then halves of batches; nothing that is finished is lost.

    Raises KlscaleError, which names the models, where `read` fails otherwise or with one text alone.
    """
    queue, begun = queued(engines, parts), deque[tuple[list[Segment], bool, Callable[[], T]]]()
    plan, made_for, n = list[int](), None, n_streams() if several else 1
    with streams(n) as start:
        while queue or begun:
            state = [(engine.batch_tokens, engine.own_logits) for engine in engines]
            if queue and state != made_for:
                plan, made_for = cuts(engines, queue), state
            while queue and len(begun) < 2 * n:  # some wait, so that no thread does
                alone = n == 1 or queue[0].length > min(engine.batch_tokens for engine in engines)
                if alone and begun:
                    break
                batch = queue[: plan[0]]
                del queue[: len(batch)], plan[0]
                begun.append((batch, alone, (partial if alone else start)(read, batch)))
                if alone:
                    break
            batch, alone, result = begun.popleft()
            found: T | None = None
            try:
                found = result()
            except Exception as error:
                if isinstance(error, KlscaleError):
                    raise
                if not _out_of_memory(error):
                    raise KlscaleError(
                        f"{' or '.join(str(engine.loaded.ref) for engine in engines)}: the forward pass failed.",
                        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                        max(engines, key=lambda engine: engine.kernel is not None)._remedy(),
                    ) from error
            del result
            if found is not None:
                yield batch, found
                continue
            # Outside the handler, and without the result, so that no traceback holds tensors.
            queue, made_for = [*batch, *queue], None
            n = 1
            for engine in engines if alone else ():
                engine._halve(batch)


@dataclass(frozen=True, eq=False)
class BatchScores:
    """What was read of a batch: `log_likelihood` (rows, readouts) in nats of each segment, at each layer where layers
    are asked for, the last being the model itself; `token_log_probability` (t,) in nats of the scored tokens, row after
    row; and what was `sampled` at those that are of texts to sample, None where none are."""

    log_likelihood: Floats
    token_log_probability: Floats
    sampled: Sampled | None


@dataclass(frozen=True, eq=False)
class Packed:
    """A batch as the model takes it: `inputs` (rows, tokens) padded on the right; each scored token's row, `owner`; the
    flat position `before` it, whose hidden state predicts it; and its id, `target`. Positions below 0 count from the
    end: they are in the beginning that the rows share, behind which `inputs` are read."""

    inputs: Tensor
    owner: Integers
    before: Tensor
    target: Tensor

    @classmethod
    def of(cls, tokens: Tokens, batch: Sequence[Segment], width: int, device: torch.device) -> Packed:
        ids = np.zeros((len(batch), width), dtype=np.int64)
        for row, part in zip(ids, batch, strict=True):
            row[: part.n_own] = tokens.of(part.text)[part.start + part.behind : part.stop]
        owner = np.repeat(np.arange(len(batch)), [part.stop - part.first for part in batch])
        places = [np.arange(part.first, part.stop) - part.start - part.behind - 1 for part in batch]
        place = np.concatenate(places)
        before = np.where(place < 0, place, owner * width + place)
        target = np.concatenate([tokens.of(part.text)[part.first : part.stop] for part in batch]).astype(np.int64)
        inputs, at = (torch.from_numpy(array).to(device) for array in (ids, target))
        return cls(inputs, owner, torch.from_numpy(before), at)

    def read(
        self, head: OutputHead, hidden: Tensor, readout: Readout | None = None, sampler: TileSampler | None = None
    ) -> Floats:
        """Log-probabilities (t,) of the scored tokens in nats, from hidden states (rows, tokens, H), of a layer where a
        readout is given; a sampler sees the tiles."""
        hidden = hidden.flatten(0, 1)[self.before.to(hidden.device)]
        hidden = hidden if readout is None else readout(hidden)
        return in_float64(head.log_likelihood(hidden, self.target, None if sampler is None else sampler.see))

    def columns(self, start: int, stop: int) -> Packed:
        """What these columns predict. No position may be in a beginning."""
        column, row = self.before % self.inputs.shape[1], self.before // self.inputs.shape[1]
        kept = (start <= column) & (column < stop)
        before = (row * (stop - start) + column - start)[kept]
        target = self.target[kept.to(self.target.device)]
        return Packed(self.inputs[:, start:stop], self.owner[kept.numpy()], before, target)

    def sums(self, token_log_probability: Floats) -> Floats:
        """The values of the scored tokens, added up by row in float64."""
        return np.bincount(self.owner, weights=token_log_probability, minlength=len(self.inputs)).astype(np.float64)


class KeptStates:
    """What enters the output embedding of one model at the scored tokens of texts (t, H), in memory: as many texts as
    `KEPT` bytes hold."""

    def __init__(self) -> None:
        self._states: dict[tuple[str, int], Tensor] = {}
        self._room = KEPT

    def of(self, texts: Sequence[tuple[str, int]]) -> Tensor | None:
        """Those of these texts, one after another (t, H); None where one lacks."""
        if not texts or any(text not in self._states for text in texts):
            return None
        return torch.cat([self._states[text] for text in texts])

    def add(self, texts: Sequence[tuple[str, int]], states: Sequence[Tensor]) -> None:
        """Keep those of these texts, while there is room."""
        for text, found in zip(texts, states, strict=True):
            size = found.numel() * found.itemsize
            if text not in self._states and size <= self._room:
                self._states[text] = found.cpu().clone()
                self._room -= size


def in_order(pieces: Sequence[tuple[int, T]]) -> list[T]:
    """The pieces of a text by the token that each begins with."""
    return [piece for _, piece in sorted(pieces, key=lambda one: one[0])]


def _sampled_parts(sampling: Sampling, texts: Integers, read: Mapping[int, Sampled]) -> dict[str, Values]:
    """The parts of these texts, from what was read of those that are sampled. What was drawn is added."""
    for text, found in read.items():
        if text not in sampling.draws.of:
            sampling.add(text, found.ids, found.log_proposal)
    log_probability = {text: found.log_probability for text, found in read.items()}
    return sampling.parts(texts, log_probability, {text: found.top for text, found in read.items()})


class _ReachedHeadError(Exception):
    """Carries the hidden states out of a forward pass that need not go on."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        mark in text for mark in ("out of memory", "not enough memory", "allocate memory")
    )
