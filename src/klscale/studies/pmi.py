"""PMI vectors of prompts and responses: what the prompts add to each response, and how far models differ in that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from klscale.inputs.texts import TextSet
from klscale.science.arrays import Floats
from klscale.science.estimates import Estimate
from klscale.science.kl import KL, bits_per_byte
from klscale.studies.maps import ModelMap, model_map, nearest
from klscale.vectors.vectors import Vectors


@dataclass(frozen=True)
class PMIPair:
    """Two models by their PMI vectors: the `distance`, mean PMI of each and its paired `difference`, b less a, all in
    bits per byte. `given` and `alone` are their KL by whole texts, of responses given prompts and of responses alone.
    """

    a: str
    b: str
    texts: TextSet
    distance: Estimate
    of_a: Estimate
    of_b: Estimate
    difference: Estimate
    given: KL
    alone: KL


@dataclass(frozen=True, eq=False)
class PMIVectors:
    """PMI of each model and text: log p(response | prompt) - log p(response), from the vectors of the same models on
    the responses `given` their prompts and `alone` (Takase et al., arXiv 2603.18593)."""

    given: Vectors
    alone: Vectors

    @cached_property
    def values(self) -> Floats:
        """PMI (K, N) in nats; NaN where either log-likelihood is not known."""
        return self.given.pmi(self.alone)

    def mean(self, model: str, than: str | None = None) -> Estimate:
        """Mean PMI of a model in bits per byte of the responses; or its paired difference, less that of another."""
        value = self.values[self.given.position(model)]
        if than is not None:
            value = value - self.values[self.given.position(than)]
        return bits_per_byte(-value, self.given.texts.bytes, documents=self.given.texts.document)

    @cached_property
    def _points(self) -> Vectors:
        """PMI in place of log-likelihoods. What is KL by whole texts of those is squared distance of these."""
        texts = self.given.texts.with_clip(None)
        return replace(self.given, log_likelihood=self.values, texts=texts, spans=None, sampled=None)

    def distance(self, a: str, b: str) -> Estimate:
        """Squared distance of two PMI vectors in bits per byte: Var_s(PMI_a - PMI_b) / (2 B ln 2), as KL by whole texts
        is of log-likelihoods. It is no KL."""
        return _estimate(self._points.kl()[a, b])

    def map(self) -> ModelMap:
        """The models as points by their PMI vectors, as `maps.model_map` has them by log-likelihoods: squared distances
        of the points approximate `distance`. Raises InputError for models without common texts."""
        return model_map(self._points)

    def nearest(self, n: int) -> dict[str, tuple[tuple[str, Estimate], ...]]:
        """The n nearest others of each model, and their `distance`."""
        found = nearest(self._points, n, range(len(self.given)))
        return {name: tuple((other, _estimate(kl)) for other, kl in near) for name, near in found.items()}

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> list[PMIPair]:
        """Each of these pairs of models."""
        alone, given = self.alone.kl(), self.given.kl()
        return [
            PMIPair(
                a, b, self.given.texts, self.distance(a, b), self.mean(a), self.mean(b), self.mean(b, a),
                given[a, b], alone[a, b],
            )
            for a, b in pairs
        ]  # fmt: skip


def _estimate(found: KL) -> Estimate:
    return Estimate.positive(found.value, found.standard_error, found.n_texts, n_documents=found.n_documents or 0)
