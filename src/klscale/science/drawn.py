"""Directed KL from texts that one of the models wrote: exact in expectation, for any two tokenizers.

Texts are drawn from the model p, each until a place that no later token decides. By the chain rule

    KL(p, q) = E sum log p/q  =  E sum_t KL_t        over the drawn part, its prompt given

`log_ratios` is the first, a mean over texts of what both models give to the drawn part. Where both have sampled tokens,
the second has much less variance: each KL_t is estimated by itself (Amini, Vieira and Cotterell, arXiv 2504.10637).

Spans would allow (r - 1) - log r with r = q/p of a span, whose second part has the mean of the first, and r - 1 the
mean 0. But that mean is 0 only if a span's end is decided before what follows it. The cuts of texts look ahead, for a
space and its distance, and a tokenizer that straddles a cut decides it by what follows. The bias is of first order in
the difference of the models, KL of second order: for near models it may be as large as KL itself. So spans only say
where the prompt ends: that cut is fixed before anything is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from klscale.science.arrays import Documents, Floats, Integers
from klscale.science.estimates import Estimate, format_estimate
from klscale.science.kl import bits_per_byte

LOG_RATIOS = "log-ratios"
"""The estimator that any two models allow."""


@dataclass(frozen=True)
class DrawnKL:
    """KL(author, other) in bits per byte on texts that the author wrote: `estimate`, and the estimator that it is `by`,
    sampled tokens or log-ratios. `log_ratios` is the mean of log-ratios, which may be below 0 where KL is small."""

    estimate: Estimate
    by: str
    log_ratios: Estimate

    def __str__(self) -> str:
        value, error = self.estimate.value, self.estimate.standard_error
        return f"{format_estimate(value, error)} bits/byte (by {self.by})"


def log_ratio_kl(author: Floats, other: Floats, drawn_bytes: Integers, *, documents: Documents = None) -> Estimate:
    """KL(author, other) in bits per byte from the log-likelihoods (N,) in nats of the drawn parts of N texts, NaN for
    texts that are left out; `drawn_bytes` (N,) are their lengths. A ratio of sums, with its standard error over texts
    or `documents`."""
    return bits_per_byte(other - author, drawn_bytes, documents=documents)
