"""A store with one of everything that a report shows, names included that would be markup if they were not escaped."""

from __future__ import annotations

import numpy as np

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.science.kl import kl
from klscale.store.store import Store, vector_key
from klscale.vectors.scores import Scores
from klscale.vectors.vectors import CONVENTION

HOSTILE = "<img src=x onerror=alert(1)>"
STEPS = range(0, 320, 20)
NOISE = 0.05
"""Variance in nats**2 of the difference of two readings of the last checkpoint of seed 1, and of what is made of it."""
BYTES, N = 60, 120


def mixed_store(location: object, steps: range = STEPS) -> Store:
    """Two seeds of a run, with checkpoints at `steps` and their weights, layers, quantized variants, other families, a
    model of another dtype, one that lacks a text, and one with a hostile name, on byte counts of known documents."""
    store, generator = Store(str(location)), np.random.default_rng(7)
    texts = TextSet(
        name="<b>mixed</b>", id="0123456789ab", bytes=np.full(N, BYTES), clip=-120.0,
        document=tuple(n // 2 for n in range(N)),
    )  # fmt: skip
    base = -70 + 8 * generator.standard_normal(N)
    dates = iter(range(10_000))

    def keep(name: str, values: np.ndarray, *, layers: np.ndarray | None = None, lacking: int = 0, **attributes):
        ref = ModelRef.parse(name)
        here = np.arange(lacking, N)
        n = next(dates)
        identity = f"files:{name}"
        entry = store.write(
            texts,
            Scores(here, values[here], np.full(len(here), 30), {} if layers is None else {"layers": layers}),
            {
                "ref": str(ref), "key": vector_key(identity, ref, CONVENTION, "transformers"), "identity": identity,
                "attributes": {key: value for key, value in attributes.items() if key != "dtype"},
                "convention": CONVENTION, "source": "transformers", "dtype": attributes.get("dtype", "float32"),
                "device": "cpu", "versions": {"torch": "2"}, "skipped": [*range(lacking)],
                "date": f"2026-01-{1 + n // 1440:02d}T{n // 60 % 24:02d}:{n % 60:02d}:00+00:00",
            },
        )  # fmt: skip
        if (ref.name, ref.revision) == ("runs/seed1", f"step{steps[-1]}"):
            again = values + NOISE**0.5 * np.tile([-1.0, 1.0], N // 2)
            store.write_noise_floor(texts.id, entry.key, kl(values, again, texts.bytes))
        return identity

    for seed in (1, 2):
        moves = generator.standard_normal((len(steps), N)).cumsum(axis=0)
        weights = generator.standard_normal((len(steps), 300)).cumsum(axis=0)
        values = base + 20 * np.exp(-np.arange(len(steps)) / 3)[:, None] * -np.abs(generator.standard_normal(N)) + moves
        last = len(steps) - 1
        identities = []
        for t, step in enumerate(steps):
            layers = None
            if (seed, t) == (1, last):
                apart = 20, 9, 6, 0  # nats: the first is out of range
                layers = np.stack([values[t] + size * generator.standard_normal(N) for size in apart], axis=1)
            identities.append(
                keep(
                    f"runs/seed{seed}@step{step}", values[t], layers=layers, family="mixed", type="neox", seed=seed,
                    step=step, parameters=1_000_000, warmup=40,
                )
            )  # fmt: skip
        for t, identity in enumerate(identities):
            others = {identities[s]: float(((weights[t] - weights[s]) ** 2).sum()) for s in range(len(steps)) if s != t}
            store.write_weight_distances(ModelRef.parse(f"runs/seed{seed}@step{steps[t]}"), identity, 300, others)
        if seed == 1:
            for kind, size in (("int8", 0.05), ("nf4", 0.6), ("fp4", 0.8)):
                keep(
                    f"runs/seed1@step{steps[-1]}+{kind}", values[-1] + size * generator.standard_normal(N),
                    family="mixed", type="neox", seed=1, step=steps[-1], parameters=1_000_000, quantization=kind,
                )  # fmt: skip
    for n, family in enumerate(("<i>other</i>", "<i>other</i>", 'a "third" & last')):
        keep(
            f"org/model-{n}", base - 5 + (4 + n) * generator.standard_normal(N), family=family, type="llama",
            parameters=10 ** (6 + n),
        )  # fmt: skip
    keep("org/half%bfloat16", base + 4 * generator.standard_normal(N), family="half", dtype="bfloat16", parameters=5)
    keep("org/short", base + 4 * generator.standard_normal(N), lacking=1, family="short", parameters=7)
    keep(HOSTILE, base + 6 * generator.standard_t(3, N), family=HOSTILE, type="$x^2$")
    return store
