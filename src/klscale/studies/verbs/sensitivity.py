"""What each part of a model costs when it is quantized alone."""

from __future__ import annotations

import os
from collections.abc import Sequence

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies.sensitivity import N_TEXTS, Sensitivity, measure
from klscale.studies.verbs.options import Options


def sensitivity(
    base: str | ModelRef,
    quantize: str | Sequence[str],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    by: str = "module",
    n_texts: int = N_TEXTS,
    control: bool = False,
    options: Options = Options(),
) -> Sensitivity:
    """Exact next-token KL in bits per byte, with standard errors, from a model to itself with one part quantized.

    `quantize`: a weights-only kind (`int8`, `nf4`, `fp4`, `int4`, `int8-torchao`), or several. `by`: a part is a
    `module` (one linear layer), a `layer` (attention or MLP of a block) or a `block`. `n_texts` texts are drawn at
    random. `control`: measure normal noise of equal norm in each weight too.

    What is measured is kept in the store; an interrupted call goes on from there. Raises InputError for texts, kinds or
    options that cannot be used, and KlscaleError for a model that cannot be quantized.

        found = klscale.sensitivity("gpt2", "int4", "my-texts.jsonl", "klscale-store")
        print(max(found.kinds[0].parts, key=lambda part: part.kl.value))
    """
    options = options.at(texts, store)
    place = options.opened()
    how = options.scoring("device", "batch_tokens", "split_special_tokens", "progress")
    kinds = [quantize] if isinstance(quantize, str) else list(quantize)
    return measure(base, kinds, options.chosen(place), place, by=by, n_texts=n_texts, control=control, **how)
