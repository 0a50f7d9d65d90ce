"""Exact next-token KL from a model to itself with some weights changed in place.

The base model reads a batch once. What each block gave is kept, and so are its logits. A change then costs the blocks
from the first changed one on, and the output embedding: the blocks before it return what they returned to the base.
That this gives the base's own hidden states is checked on the first batch.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import WEIGHTS_ONLY
from klscale.science.arrays import Floats, Integers
from klscale.sources.source import Change, Module, ReaderOptions
from klscale.sources.tokens import Segment, Tokens
from klscale.sources.transformers import quantization
from klscale.sources.transformers.engine import Engine, Packed, in_batches
from klscale.sources.transformers.load import LoadedModel
from klscale.sources.transformers.next_token import n_vocabulary
from klscale.sources.transformers.readout import blocks_of

HELD = 2**29
"""Bytes of logits and hidden states of the base model that are held for a batch (on a GPU 8 times as many)."""
ROUNDING = 1e-4
"""Largest relative difference between hidden states after blocks that were skipped, and the base's own."""


def modules_of(loaded: LoadedModel) -> list[Module]:
    """The linear layers and experts of a model, without the output embedding. Raises InputError for a model that is
    quantized already, and KlscaleError for one that does not fit into memory."""
    if loaded.quantization is not None and loaded.ref.file is None:  # the weights of a GGUF file are plain numbers here
        raise InputError(f"{loaded.ref} is quantized already.", remedy="Give the model that it was made from.")
    if loaded.offload is not None:
        raise KlscaleError(f"{loaded.ref} does not fit into memory, so that its weights cannot be changed.")
    block_of = {module: n for n, block in enumerate(blocks_of(loaded.model)) for module in block.modules()}

    def of(matrix: quantization.Matrix) -> Module:
        shape = matrix.shape
        sizes = {
            kind: quantization.stored_bytes(kind, shape) for kind in WEIGHTS_ONLY if quantization.holds(kind, shape)
        }
        return Module(matrix.name, block_of.get(matrix.module), shape[0] * shape[1], sizes)

    return [of(matrix) for matrix in quantization.matrices(loaded.model)]


class Bench:
    """A model, the changes that are made to it one after another, and who takes their KL (see `Reader.changed_kl`)."""

    def __init__(
        self,
        loaded: LoadedModel,
        changes: Sequence[Change],
        options: ReaderOptions,
        known: Callable[[Change, Integers], bool],
        report: Callable[[Change, Integers, Floats], None],
    ) -> None:
        self.changes, self.known, self.report, self.ref = changes, known, report, loaded.ref
        block = {module.name: module.block for module in modules_of(loaded)}
        self.matrices = {matrix.name: matrix for matrix in quantization.matrices(loaded.model)}
        self.blocks = blocks_of(loaded.model)
        # Blocks before the first changed one are skipped; a change outside the blocks needs all of them.
        self.first = {change: min((block[name] or 0 for name, _ in change.kinds), default=0) for change in changes}
        for kind in {kind for change in changes for _, kind in change.kinds}:
            quantization.require_kind(kind, f"{loaded.ref}+{kind}")
        self.engine = Engine(loaded, device=options.device, batch_tokens=options.batch_tokens)
        self.engine.reads_pieces = False  # what a block returned is kept of one pass
        hidden = getattr(loaded.model.config.get_text_config(), "hidden_size", 4096)
        each = 8 * n_vocabulary(self.engine) + hidden * len(self.blocks) * loaded.model.dtype.itemsize
        held = HELD * (8 if self.engine.device.type == "cuda" else 1)
        self.engine.batch_tokens = min(self.engine.batch_tokens, max(1, held // each))
        self.skips: bool | None = None
        """Whether blocks can be skipped; None before the first batch."""

    @torch.inference_mode()
    def read(self, tokens: Tokens, texts: Sequence[int] | Integers) -> None:
        """Report the KL of every change on all of these texts, a batch after another."""
        parts = [Segment(int(s), 0, int(tokens.lengths[s]), 1) for s in texts if tokens.lengths[s] > 1]
        if parts:
            self.engine.find_head(tokens, parts[0])
        for _ in in_batches((self.engine,), parts, lambda batch: self._read(tokens, batch)):
            pass

    def _read(self, tokens: Tokens, batch: Sequence[Segment]) -> bool:
        text = np.array([part.text for part in batch], dtype=np.int64)
        lacking = [change for change in self.changes if not self.known(change, text)]
        if not lacking:
            return True
        packed = Packed.of(tokens, batch, max(part.length for part in batch), self.engine.device)
        outputs: dict[nn.Module, Any] = {}
        with self._recording(outputs):
            base = _Base.of(self.engine.next_token_logits(packed)(slice(None)))
        if self.skips is None:
            self.skips = self._can_skip(packed, outputs, base.logits)
        for change in lacking:
            before = self.blocks[: self.first[change]] if self.skips else ()
            with self._changed(change), _skipping(before, outputs):
                sums = packed.sums(base.kl(self.engine.next_token_logits(packed)))
            if not np.isfinite(sums).all():
                raise KlscaleError(
                    f"The next-token KL of {self.ref} with {change.name} changed is not finite.",
                    "Its logits are not finite after the change.",
                    "Score the model first: that names damaged weights.",
                )
            self.report(change, text, sums)
        return True

    def _can_skip(self, packed: Packed, outputs: Mapping[nn.Module, Any], base: Tensor) -> bool:
        """Whether the pass from the middle of the blocks gives what the whole pass gave."""
        if any(block not in outputs for block in self.blocks):
            return False
        with _skipping(self.blocks[: len(self.blocks) // 2], outputs):
            again = self.engine.next_token_logits(packed)(slice(None))
        return bool((again - base).abs().max() <= ROUNDING * base[base.isfinite()].abs().max())

    @contextlib.contextmanager
    def _recording(self, outputs: dict[nn.Module, Any]) -> Iterator[None]:
        """Within, what each block returns is kept."""

        def keep(block: nn.Module, _arguments: Any, output: Any) -> None:
            outputs[block] = output

        handles = [block.register_forward_hook(keep) for block in self.blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _changed(self, change: Change) -> Iterator[None]:
        """Within, the weights are changed."""
        own = {name: self.matrices[name].held.clone() for name, _ in change.kinds}
        try:
            for name, kind in change.kinds:
                matrix = self.matrices[name]
                back = quantization.quantized_weight(matrix, kind, self.engine.device, f"{self.ref}+{kind}: {name}")
                matrix.held.copy_(own[name] + _noise(back - own[name], name) if change.noise else back)
            yield
        finally:
            for name, weight in own.items():
                self.matrices[name].held.copy_(weight)


@contextlib.contextmanager
def _skipping(blocks: Sequence[nn.Module], outputs: Mapping[nn.Module, Any]) -> Iterator[None]:
    """Within, these blocks return what they returned before."""

    def returning(output: Any) -> Callable[..., Any]:
        return lambda *_arguments, **_keywords: output

    own = {block: vars(block).get("forward") for block in blocks}
    try:
        for block in blocks:
            vars(block)["forward"] = returning(outputs[block])
        yield
    finally:
        for block, forward in own.items():
            vars(block).pop("forward", None)
            if forward is not None:
                vars(block)["forward"] = forward


def _noise(error: Tensor, name: str) -> Tensor:
    """Normal random numbers with the norm of `error`; the same for a module of this name each time."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16)
    drawn = torch.randn(error.shape, generator=torch.Generator().manual_seed(seed)).to(error.device)
    scaled: Tensor = (drawn * (error.float().norm() / drawn.norm())).to(error.dtype)
    return scaled


@dataclass(frozen=True)
class _Base:
    """What the base model predicts at the scored tokens of a batch: `logits` and probabilities `p` (t, V), and the sums
    of these (t,), which differ from 1 by rounding. `masked`: some ids are ruled out."""

    logits: Tensor
    p: Tensor
    mass: Tensor
    masked: bool

    @classmethod
    def of(cls, logits: Tensor) -> _Base:
        p, mass = torch.empty_like(logits), logits.new_empty(len(logits), dtype=torch.float64)
        size = _rows(logits)
        for start in range(0, len(logits), size):
            part = slice(start, start + size)
            p[part] = logits[part].double().softmax(dim=1)
            wide = p[part].double()
            mass[part] = torch.linalg.vecdot(wide, torch.ones_like(wide))
        return cls(logits, p, mass, bool(logits.isinf().any()))

    def kl(self, read: Callable[[slice], Tensor]) -> Floats:
        """KL (t,) in nats to the distributions whose logits are `read`.

        With d the difference of logits, KL is log(sum p e^d) - sum p d. In float64 the digits that cancel are not
        missed; that p is in float32 moves KL by as little as p.
        """
        size, rows = _rows(self.logits), []
        for first in range(0, len(self.logits), TOKENS):
            other = read(slice(first, first + TOKENS))
            for start in range(0, len(other), size):
                part = slice(first + start, first + start + len(other[start : start + size]))
                d = (other[start : start + size] - self.logits[part]).double()
                if self.masked:
                    d.nan_to_num_(nan=0.0)
                p, mass = self.p[part].double(), self.mass[part]
                mean = torch.linalg.vecdot(p, d) / mass
                rows.append((torch.linalg.vecdot(p, d.exp_()) / mass).log() - mean)
        return np.asarray(torch.cat(rows).clamp(min=0).cpu().numpy())


def _rows(logits: Tensor) -> int:
    """Rows of logits that are worked on at a time."""
    return max(1, (PIECE << (8 if logits.is_cuda else 0)) // logits.shape[1])


TOKENS, PIECE = 512, 2**16
"""Tokens whose logits under a change are held at a time, and logits that are worked on in float64: they fit the cache
of a CPU; on a GPU 256 times as many."""
