"""What each part of a model costs when it is quantized alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from klscale.display import Displayed
from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.store.store import Store
from klscale.studies.budget import Mix, spend
from klscale.studies.sensitivity import N_TEXTS, Sensitivity, measure
from klscale.studies.verbs.options import Options


@dataclass(frozen=True, eq=False)
class PartCosts(Displayed):
    """What each part of a model costs: `found`, and the `mix` that spends a budget, where one was given."""

    found: Sensitivity
    mix: Mix | None = None

    def __str__(self) -> str:
        lines = [str(self.found)]
        if self.mix is not None:
            lines.append(f"{self.mix.bits:.2f} bits per weight: promised {self.mix.promised}, got {self.mix.got}")
        return "\n".join(lines)


def sensitivity(
    base: str | ModelRef,
    quantize: str | Sequence[str],
    texts: TextSet | str | None = None,
    store: Store | str | os.PathLike[str] | None = None,
    *,
    by: str = "module",
    n_texts: int = N_TEXTS,
    control: bool = False,
    budget: float | None = None,
    options: Options = Options(),
) -> PartCosts:
    """Exact next-token KL in bits per byte, with standard errors, from a model to itself with one part quantized.

    `quantize`: a weights-only kind (`int8`, `nf4`, `fp4`, `int4`, `int8-torchao`), or several. `by`: a part is a
    `module` (one linear layer, or one matrix of an expert), a `layer` (attention or MLP of a block), a `block` or an
    `expert`. `n_texts` texts are drawn at random. `control`: measure normal noise of equal norm in each weight too.
    `budget`: bits per weight of the linear layers; `mix` then has the kind of each module that costs least within it,
    measured on as many other texts.

    What is measured is kept in the store; an interrupted call goes on from there. Raises InputError for texts, kinds or
    options that cannot be used, and KlscaleError for a model that cannot be quantized.

        costs = klscale.sensitivity("gpt2", "int4", "my-texts.jsonl", "klscale-store")
        print(max(costs.found.kinds[0].parts, key=lambda part: part.kl.value))
    """
    options = options.at(texts, store)
    place = options.opened()
    how = options.scoring("device", "batch_tokens", "split_special_tokens", "progress")
    kinds = [quantize] if isinstance(quantize, str) else list(quantize)
    found = measure(base, kinds, options.chosen(place), place, by=by, n_texts=n_texts, control=control, **how)
    return PartCosts(found, None if budget is None else spend(found, budget))
