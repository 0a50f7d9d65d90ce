"""Exact next-token KL between two models that share a tokenizer, and texts sampled from a model.

After each token of a text both models give a distribution over the whole vocabulary. Their KL is computed there, and by
the chain rule its sum along texts that are drawn from p_a has KL(p_a || p_b) over texts as its mean. Logits are made
for as many tokens at a time as `TILE` allows: those of two models for a whole batch never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from klscale.errors import KlscaleError
from klscale.inputs.references import ModelRef
from klscale.science.arrays import Floats, Integers
from klscale.sources.quiet import quiet_transformers
from klscale.sources.source import Keep, NextTokens
from klscale.sources.tokens import Segment, Tokens
from klscale.sources.transformers.engine import Engine, Packed, in_batches

TILE, PIECE = 2**22, 2**18
"""Logits of one model that are held at a time (16 MB), and of these the ones that are worked on in float64, few enough
for the cache of a CPU; on a GPU 16 times as many, all at once."""
LEFT_OUT = 1e-3
"""Largest probability that a padded vocabulary may give to ids that the other model does not have."""
SPREAD = 32
"""Tokens by which the beginnings of texts that are drawn together may differ in length."""


def compare_next_tokens(
    a: Engine,
    b: Engine,
    tokens: Tokens,
    texts: Sequence[int] | Integers,
    advance: Callable[[int], None] = lambda _: None,
) -> NextTokens:
    """Next-token KL between two models at each scored token of these texts, which fit the windows of both. `advance` is
    told of texts that are done.

    Where one has more ids than the other (vocabularies padded to different sizes), both are renormalised on those that
    they share. Raises KlscaleError where that leaves out a probability above 1e-3, and for a KL that is not finite.
    """
    (found,) = compare_pairs((a, b), ((0, 1),), tokens, texts, advance)
    return found


@torch.inference_mode()
def compare_pairs(
    engines: Sequence[Engine],
    pairs: Sequence[tuple[int, int]],
    tokens: Tokens,
    texts: Sequence[int] | Integers,
    advance: Callable[[int], None] = lambda _: None,
) -> list[NextTokens]:
    """The same for several pairs of places in `engines`; each model reads each text once. Raises as for one pair."""
    lengths, before = tokens.lengths.tolist(), tokens.before.tolist()
    parts = [Segment(s, 0, lengths[s], before[s]) for s in map(int, texts) if lengths[s] > before[s]]
    for engine in engines if parts else ():
        engine.find_head(tokens, parts[0])
    found = [(np.empty(0, dtype=np.int64), np.empty((len(pairs), 7, 0)))]
    for batch, values in in_batches(engines, parts, lambda batch: _read(engines, pairs, tokens, batch)):
        found.append(values)
        advance(len(batch))
    text, rows = (np.concatenate(values, axis=-1) for values in zip(*found, strict=True))
    order = np.argsort(text, kind="stable")
    text, rows = text[order], rows[..., order]
    for (a, b), of_pair in zip(pairs, rows, strict=True):
        _require_sound(engines[a].loaded.ref, engines[b].loaded.ref, text, of_pair)
    return [
        NextTokens(
            text, forward, backward, same_top > 0, top, np.stack(log_likelihood), float(left_out.max(initial=0.0))
        )
        for forward, backward, same_top, top, *log_likelihood, left_out in rows
    ]


@torch.inference_mode()
def read_log_probabilities(engine: Engine, tokens: Tokens, text: int, take: Callable[[int, Floats], None]) -> None:
    """Log-probabilities (t, V) in nats at the scored positions of a text, a tile at a time, for `take`."""
    part = Segment(text, 0, int(tokens.lengths[text]), int(tokens.before[text]))
    engine.find_head(tokens, part)

    def read(batch: Sequence[Segment]) -> int:
        packed = Packed.of(tokens, batch, part.length, engine.device)
        logits = engine.next_token_logits(packed)
        size = max(1, TILE // logits(slice(1)).shape[1])
        for start in range(0, len(packed.target), size):
            tile = logits(slice(start, start + size)).cpu()  # what has no float64 (Apple's GPUs) hands it to the CPU
            take(start, tile.double().log_softmax(dim=1).numpy())
        return len(batch)

    for _ in in_batches((engine,), [part], read):
        pass


def _read(
    engines: Sequence[Engine], pairs: Sequence[tuple[int, int]], tokens: Tokens, batch: Sequence[Segment]
) -> tuple[Integers, Floats]:
    """Which text each scored token of a batch is of, and the rows (P, 7, t) of `_compare` of each pair."""
    device = engines[0].device
    packed = Packed.of(tokens, batch, max(part.length for part in batch), device)
    # What has no float64 (Apple's GPUs) hands its logits to the CPU.
    place = torch.device("cpu") if device.type == "mps" else device
    which = [(tokens.key, part.text) for part in batch]
    readers = [engine.next_token_logits(packed, which) for engine in engines]
    on_gpu, width = place.type == "cuda", max(read(slice(1)).shape[1] for read in readers)
    size = max(1, (16 * TILE if on_gpu else TILE) // width)
    piece = size if on_gpu else max(1, PIECE // width)
    found = []
    for start in range(0, len(packed.target), size):
        part = slice(start, start + size)
        tile = (*(read(part).to(place) for read in readers), packed.target[part].to(place))
        for *logits, target in zip(*(torch.split(whole, piece) for whole in tile), strict=True):
            wide, known = [one.double() for one in logits], dict[tuple[int, int], _Distribution]()
            found.append(torch.stack([_compare(*_of_pair(wide, pair, known), target) for pair in pairs]).cpu())
    text = np.array([part.text for part in batch], dtype=np.int64)[packed.owner]
    return text, torch.cat(found, dim=2).numpy()


class _Distribution(NamedTuple):
    """Of a tile, on the ids that a pair shares."""

    log_p: Tensor
    """(t, V)"""
    p: Tensor
    """(t, V)"""
    top: Tensor
    """The most probable id (t,)."""
    left_out: Tensor
    """Probability of the other ids (t,)."""

    @classmethod
    def of(cls, logits: Tensor, n: int) -> _Distribution:
        left_out = logits.new_zeros(len(logits))
        if logits.shape[1] > n:
            left_out = logits.softmax(dim=1)[:, n:].sum(dim=1)
        log_p = logits[:, :n].log_softmax(dim=1)
        return cls(log_p, log_p.exp(), log_p.argmax(dim=1), left_out)


def _of_pair(
    logits: Sequence[Tensor], pair: tuple[int, int], known: dict[tuple[int, int], _Distribution]
) -> tuple[_Distribution, _Distribution]:
    """Those of the two models, each made once for all pairs that share as many ids."""
    n = min(logits[place].shape[1] for place in pair)
    for place in pair:
        if (place, n) not in known:
            known[place, n] = _Distribution.of(logits[place], n)
    return known[pair[0], n], known[pair[1], n]


def _compare(a: _Distribution, b: _Distribution, target: Tensor) -> Tensor:
    """The rows (7, t) of a tile."""
    d = b.log_p - a.log_p
    own = [one.log_p.gather(1, target[:, None])[:, 0] for one in (a, b)]
    top = a.p.gather(1, a.top[:, None])[:, 0]
    same_top = (a.top == b.top).double()
    return torch.stack([_kl(a.p, b.p, d), _kl(b.p, a.p, -d), same_top, top, *own, a.left_out + b.left_out])


def _kl(p: Tensor, q: Tensor, d: Tensor) -> Tensor:
    """KL(p || q) in nats (t,) of distributions (t, V), as sum p (e^d - 1 - d) with d = log q - log p.

    The two terms that are added to -p d have the sum 0; with them no term is negative, and near models lose no digits
    to those that would cancel.
    """
    near = d.expm1().sub_(d).mul_(p)
    far = torch.where(p > 0, (q - p).sub_(p * d), q)  # e^d overflows where p is tiny
    return torch.where(d.abs() < 1, near, far).sum(dim=1)


def _require_sound(a: ModelRef, b: ModelRef, text: Integers, rows: Floats) -> None:
    left_out = rows[-1]
    if (left_out > LEFT_OUT).any():
        raise KlscaleError(
            f"{a} and {b} do not have the same vocabulary.",
            f"Ids that only one of them has take up to {left_out.max():.2g} of its probability.",
            "Exact KL is for models that predict the same tokens.",
        )
    if not np.isfinite(rows).all():
        worst = int(np.argmin(np.isfinite(rows).all(axis=0)))
        raise KlscaleError(
            f"The next-token KL of {a} and {b} is not finite in text {text[worst]}.",
            "One of them gives no probability at all to what the other may say, or its logits are not finite.",
            "Score both first: that names a model whose weights are damaged.",
        )


# ----------------------------------------------------------------------------------------------------------- sampling


def sample_texts(
    engine: Engine,
    tokens: Tokens,
    texts: Sequence[int] | Integers,
    seed: int,
    n_ids: int,
    keep: Keep = lambda *_: None,
    *,
    more: Integers | None = None,
) -> Tokens:
    """A text from the model for each of these texts, in their order: as many tokens, begun with the special tokens in
    front and the first token of the text, the others drawn one after another from the whole distribution, renormalised
    on the first `n_ids` ids where there are more. With `more` (n,) each text is kept as a whole, and so many tokens
    follow. An end of text neither ends a sample nor is avoided. The random numbers of a text depend on the seed and its
    position alone, not on the batch that it is in. `keep` is given each text and its tokens once they are drawn.
    """
    special = {*engine.loaded.tokenizer.all_special_ids}
    drawn: dict[int, NDArray[np.int32]] = {}
    parts: list[Segment] = []
    for place, s in enumerate(map(int, texts)):
        ids = tokens.of(s)
        n_special = next((n for n, token in enumerate(ids) if int(token) not in special), len(ids))
        part = Segment(s, 0, len(ids), n_special + 1)
        if more is not None:
            part = Segment(s, 0, len(ids) + int(more[place]), len(ids))
        if part.first < part.stop:
            parts.append(part)
        else:
            drawn[s] = ids  # nothing is left to draw

    def draw(batch: Sequence[Segment]) -> NDArray[np.int32]:
        begin = Tokens.from_rows([tokens.of(part.text)[: part.first] for part in batch])
        uniform = np.zeros((len(batch), max(part.length for part in batch)))
        for row, part in zip(uniform, batch, strict=True):
            row[: part.length] = np.random.default_rng([seed, part.text]).random(part.length)
        return _generate(engine, begin, uniform, n_ids)

    parts.sort(key=lambda part: part.first)
    while parts:
        n = sum(part.first <= parts[0].first + SPREAD for part in parts)
        for batch, rows in in_batches((engine,), parts[:n], draw):
            for part, row in zip(batch, rows, strict=True):
                drawn[part.text] = row[: part.length]
                keep(part.text, drawn[part.text])
        del parts[:n]
    return Tokens.from_rows([drawn[int(s)] for s in texts])


def _generate(engine: Engine, begin: Tokens, uniform: Floats, n_ids: int) -> NDArray[np.int32]:
    """Token ids (rows, n) that go on from `begin` at temperature 1, by the random numbers `uniform` (rows, n) of all
    positions. Rows grow together from the length of the shortest beginning: a longer one is put in token by token, so
    that no model needs padding in front."""
    from transformers import GenerationConfig, LogitsProcessorList

    model, device = engine.model, engine.device
    lengths = torch.from_numpy(begin.lengths).to(device)
    given = torch.zeros(len(uniform), int(begin.lengths.max()), dtype=torch.int64)
    for n, length in enumerate(begin.lengths.tolist()):
        given[n, :length] = torch.from_numpy(begin.of(n).astype(np.int64))
    given = given.to(device)
    first = given[:, : int(begin.lengths.min())]
    kind = torch.float32 if device.type == "mps" else torch.float64
    chances = torch.from_numpy(uniform).to(kind).to(device)

    def choose(ids: Tensor, logits: Tensor) -> Tensor:
        """0 for the token of each row whose share of the distribution holds the random number, -inf for the others."""
        at = ids.shape[1]
        running = logits[:, :n_ids].to(kind).softmax(dim=1).cumsum(dim=1)
        place = chances[:, at, None] * running[:, -1:]
        chosen = torch.searchsorted(running, place, right=True).clamp(max=running.shape[1] - 1)
        if at < given.shape[1]:
            chosen = torch.where((at < lengths)[:, None], given[:, at, None], chosen)
        return torch.full_like(logits, -torch.inf).scatter(1, chosen, 0.0)

    plain = GenerationConfig(do_sample=False, max_new_tokens=uniform.shape[1] - first.shape[1])
    # What the configuration of a call leaves open is taken from the model's own: temperature, end of text and all.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with quiet_transformers():
            found = model.generate(
                first,
                generation_config=plain,
                attention_mask=torch.ones_like(first),
                logits_processor=LogitsProcessorList([choose]),
            )
    finally:
        model.generation_config = own
    ids: NDArray[np.int32] = found.cpu().numpy().astype(np.int32)
    return ids


def n_vocabulary(engine: Engine) -> int:
    """How many ids a model gives a probability to, padding included."""
    return int(engine.model.config.get_text_config().vocab_size)
