"""Long tables: a row is one model and one text. They become wide: a row is one text, a column one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from klscale.errors import InputError, nearest
from klscale.inputs.attributes import number_of

VALUES = ("log_likelihood", "loglikelihood", "log_prob", "logprob", "ll", "nll", "loss", "value")
"""Names of the column of values, the first that is there."""
TEXTS = ("text_id", "id", "doc_id", "document_id", "index", "text")
"""Names of the column that says which text, where it is not named."""
OF_MODELS = ("step", "seed", "family", "type", "parameters", "parent")
"""Columns that are about the model of a row."""


def is_long(columns: Mapping[str, Any]) -> bool:
    """Whether a table has a column `model` and one of values."""
    return "model" in columns and any(name in columns for name in VALUES)


def to_wide(columns: Mapping[str, Any], id_column: str | None) -> tuple[dict[str, Any], str, dict[str, dict[str, Any]]]:
    """Columns with a row for each text, in the order of their first rows; the name of the column that identifies them;
    and what is known of each model. Raises InputError for a text that a model has twice or not at all, and for a step
    that is no number."""
    value = next(name for name in VALUES if name in columns)
    text = id_column or next((name for name in TEXTS if name in columns), None)
    if text is None:
        why = f"A long table needs a column for it. Columns: {', '.join(map(repr, columns))[:300]}."
        raise InputError("which text is a row about?", why, "Name the column: --id COL")
    cells = columns["model"].to_pylist()
    if not all(isinstance(cell, str) and cell.strip() for cell in cells):
        row = next(row for row, cell in enumerate(cells, 1) if not (isinstance(cell, str) and cell.strip()))
        raise InputError(f"column 'model', row {row}: empty.", "Every row is about a model.", "Fill it in.")
    steps = columns["step"].to_pylist() if "step" in columns else [None] * len(cells)
    ending = {step: _ending(step, steps) for step in dict.fromkeys(steps)}
    names = [f"{cell}{ending[step]}" for cell, step in zip(cells, steps, strict=True)]
    models = {name: place for place, name in enumerate(dict.fromkeys(names))}
    keys = columns[text].to_pylist()
    texts = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    row_of = np.array([texts[key] for key in keys])
    column_of = np.array([models[name] for name in names])
    where = np.full((len(texts), len(models)), -1, dtype=np.int64)
    for row, place in enumerate(zip(row_of.tolist(), column_of.tolist(), strict=True)):
        if where[place] >= 0:
            what = f"rows {where[place] + 1} and {row + 1}: {names[row]!r} has the text {str(keys[row])[:40]!r} twice."
            raise InputError(what, "Which value is meant?", "Drop one, or name another column of texts: --id COL")
        where[place] = row
    if (where < 0).any():
        t, m = (int(n) for n in np.argwhere(where < 0)[0])
        what = f"{list(models)[m]!r} has no value for the text {str(list(texts)[t])[:40]!r}."
        raise InputError(what, "Every model needs a value for every text.", "Score those texts, or drop them.")
    values = columns[value]
    wide: dict[str, Any] = {text: pa.array(list(texts))}
    for name, cells_of in columns.items():
        if name in ("model", value, text, *OF_MODELS) or name == "n_tokens":
            continue
        of_texts = cells_of.take(pa.array(where[:, 0]))
        other = [row for row, t in enumerate(row_of.tolist()) if cells_of[row] != of_texts[t]]
        if other:
            what = f"column {name!r}, row {other[0] + 1}: another value than for the same text of another model."
            raise InputError(what, "Columns beside the values are about texts.", f"Drop the column {name!r}.")
        wide[name] = of_texts
    known: dict[str, dict[str, Any]] = {}
    for column, model in enumerate(models):
        rows = pa.array(where[:, column])
        wide[model] = values.take(rows)
        if "n_tokens" in columns:
            wide[f"n_tokens {model}"] = columns["n_tokens"].take(rows)
        first = int(where[0, column])
        about = {name: columns[name][first].as_py() for name in OF_MODELS if name in columns}
        known[model] = {name: value for name, value in about.items() if value is not None}
    if nearest_name := [name for name in models if name in (text, "bytes", "text", "document", "domain")]:
        raise InputError(f"a model is called {nearest_name[0]!r}.", nearest(text, list(wide)), "Rename it.")
    return wide, text, known


def _ending(step: Any, steps: Sequence[Any]) -> str:
    """What a step adds to the name of a model. Raises InputError for one that is no number."""
    try:
        whole = int(step) if isinstance(step, float) and step.is_integer() else step
        return "" if step is None else f"@step{number_of('step', whole if isinstance(whole, int) else str(whole))}"
    except InputError as error:
        raise error.at(f"column 'step', row {steps.index(step) + 1}") from error
