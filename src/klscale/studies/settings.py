"""The setting of a pair: in what two models differ. An unknown attribute never counts as a difference.

`docs/scale.md` defines each setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from klscale.errors import InputError
from klscale.inputs.references import ATTENTIONS, ModelRef

IDENTITY = ("family", "type", "parameters", "seed", "step", "parent", "quantization", "dtype")
EQUAL_SIZE = 1.3
"""Largest ratio of parameters between models of different architecture that count as equal in size."""


def setting_of(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> str | None:
    """The setting that two models instance by their attributes: `checkpoint`, `seed`, `size`, `architecture`,
    `fine-tuning`, `layer`, `8-bit (KIND)`, `4-bit (KIND)`, `quantization (KIND)`, `attention (KIND)`; None for
    anything else.

    It does not depend on the rest of the store: whether these checkpoints are consecutive, or the last of their runs.
    """
    if a_ref.layer is not None or b_ref.layer is not None:
        same = replace(a_ref, layer=None) == replace(b_ref, layer=None)
        whole = a_ref.quantization is None and a.get("quantization") is None
        return (
            "layer" if same and whole and None not in (a_ref.layer, b_ref.layer) and _adjacent(a_ref, b_ref) else None
        )
    if kind := quantization_between(a, b, a_ref, b_ref):
        return quantization_setting(kind)
    if a.get("quantization") is not None or b.get("quantization") is not None:
        return None
    if is_child_of(a, b, a_ref, b_ref) or is_child_of(b, a, b_ref, a_ref):
        return "fine-tuning"
    differing = _differing(a, b)
    if _same_origin(a, b, a_ref, b_ref) and len(differing) == 1 and differing[0] in _SETTING_OF:
        return _SETTING_OF[differing[0]]
    sizes = [row["parameters"] for row in (a, b) if row.get("parameters") is not None and row.get("parent") is None]
    equal_size = len(sizes) == 2 and max(sizes) <= EQUAL_SIZE * min(sizes) * (1 + 1e-9)
    return "architecture" if equal_size and "type" in differing and "dtype" not in differing else None


_SETTING_OF = {"seed": "seed", "parameters": "size", "step": "checkpoint"}


def quantization_setting(kind: str) -> str:
    """The setting of a quantization, by the number of bits in its name: `4-bit (nf4)`, `8-bit (gguf-q8_0)`;
    `quantization (awq)` where the name has none. `attention (eager)` for a model whose attention is computed otherwise.
    """
    if kind in ATTENTIONS:
        return f"attention ({kind.removeprefix('attention-')})"
    for bits in (8, 4):
        if re.search(rf"(?:int|nf|fp|q){bits}(?!\d)|(?<!\d){bits}-?bit", kind, re.IGNORECASE):
            return f"{bits}-bit ({kind})"
    return f"quantization ({kind})"


def _adjacent(a: ModelRef, b: ModelRef) -> bool:
    return abs((a.layer or 0) - (b.layer or 0)) == 1


def quantization_between(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> str | None:
    """The kind of quantization, where one of two models is the quantized other; else None."""
    if (a.get("quantization") is None) == (b.get("quantization") is None):
        return None
    if b.get("quantization") is None:
        a, b, a_ref, b_ref = b, a, b_ref, a_ref
    kind = str(b["quantization"])
    if b_ref.quantization is not None:  # by klscale: the rest of the reference is the whole model
        return kind if replace(b_ref, quantization=None) == a_ref else None
    if is_child_of(a, b, a_ref, b_ref):  # a separate checkpoint, whose parent is the model that was quantized
        return kind
    alone = _differing(a, b) == ["quantization"] and (a.get("step") is None) == (b.get("step") is None)
    return kind if alone and _same_origin(a, b, a_ref, b_ref) else None


def is_child_of(parent: Mapping[str, Any], child: Mapping[str, Any], parent_ref: ModelRef, child_ref: ModelRef) -> bool:
    """Whether the child names the parent, and both have the same dtype; the name of a parent need not have one."""
    named = parent_of(child)
    if named is None or named not in (str(parent_ref), str(replace(parent_ref, dtype="float32"))):
        return False
    return not _both(parent, child, "dtype") or parent["dtype"] == child["dtype"]


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [name for name in IDENTITY if _both(a, b, name) and not _alike(known(a, name), known(b, name), name)]


def known(attributes: Mapping[str, Any], name: str) -> Any:
    """An attribute. A missing parent or quantization means none."""
    value = attributes.get(name)
    return "none" if name in ("quantization", "parent") and value is None else value


def _alike(a: Any, b: Any, name: str) -> bool:
    """Whether two values are equal; parameters may differ by 10 %: a fine-tune with a few more tokens is of equal
    size."""
    return bool(abs(a - b) <= 0.1 * max(a, b)) if name == "parameters" else bool(a == b)


def parent_of(attributes: Mapping[str, Any]) -> str | None:
    """The parent as a printed reference; None where there is none, or it cannot be read as one."""
    try:
        return str(ModelRef.parse(str(attributes["parent"])))
    except (KeyError, InputError):
        return None


def _both(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    return known(a, name) is not None and known(b, name) is not None


def _same_origin(a: Mapping[str, Any], b: Mapping[str, Any], a_ref: ModelRef, b_ref: ModelRef) -> bool:
    """Whether two models have one family or one name: models of unknown family are never relatives."""
    return (a.get("family") is not None and a.get("family") == b.get("family")) or a_ref.name == b_ref.name
