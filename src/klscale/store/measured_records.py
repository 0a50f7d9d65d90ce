"""What was measured and is kept: distances of weights, maps, run-to-run noise, scales, exact KL."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from klscale.errors import UnreadableError
from klscale.inputs.texts import content_id
from klscale.science.kl import KL
from klscale.store.records import (
    CHANGED,
    COUNT,
    KEY,
    LIST,
    MAPPING,
    TEXT,
    from_json,
    from_parquet,
    from_record,
    require_fields,
    require_own,
    require_table,
    required,
    to_json,
    to_parquet,
    to_record,
)

WEIGHTS = pa.schema([("other", pa.string()), ("squared_distance", pa.float64())])
NONE = "no_repeat_run"
"""The field of a record of run-to-run noise that says why there is none."""


# ------------------------------------------------------------------------------------------------------------- weights


def weights_to_parquet(squared_distances: Mapping[str, float], metadata: Mapping[str, Any]) -> bytes:
    """Squared distances of a checkpoint's weights to those of others, by identity."""
    table = pa.table([[*squared_distances], [*squared_distances.values()]], schema=WEIGHTS)
    return to_parquet("weights", table, {**metadata, "checksum": _weights_checksum(squared_distances)})


def weights_from_parquet(data: bytes, file: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Squared distances to other checkpoints, by identity, and metadata; raises one of UNREADABLE."""
    table, metadata = from_parquet("weights", data)
    require_table(table, WEIGHTS)
    found = dict(zip(*(table.column(name).to_pylist() for name in WEIGHTS.names), strict=True))
    if _weights_checksum(found) != metadata["checksum"]:
        raise UnreadableError(CHANGED)
    wanted = {"ref": required(TEXT), "identity": required(TEXT), "n_parameters": required(COUNT), "date": TEXT}
    require_fields(metadata, wanted)
    if not file.endswith(weights_name(metadata["identity"])):
        raise UnreadableError("has the name of another checkpoint")
    if not all(0 <= value < math.inf for value in found.values()):
        raise UnreadableError("has distances that are negative or not finite")
    return found, metadata


def weights_name(identity: str) -> str:
    """How the name of the file of a checkpoint's weights ends."""
    return f"-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.parquet"


def _weights_checksum(squared_distances: Mapping[str, float]) -> str:
    values = np.array([*squared_distances.values()], dtype="<f8")
    return content_id([*(other.encode() for other in squared_distances), values.tobytes()])


# ---------------------------------------------------------------------------------------------------------------- maps

Columns = dict[str, NDArray[Any]]


def map_to_parquet(columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> bytes:
    """A kept map: `columns` of strings and numbers, one row a model."""
    table = pa.table(dict(columns))
    arrays = {name: table.column(name).to_numpy() for name in table.column_names}
    return to_parquet("map", table, {**metadata, "checksum": _map_checksum(arrays, metadata)})


def map_from_parquet(data: bytes, text_set: str, key: str) -> tuple[Columns, dict[str, Any]]:
    """Columns and metadata of a kept map; raises one of UNREADABLE."""
    table, metadata = from_parquet("map", data)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    if _map_checksum(columns, metadata) != metadata["checksum"]:
        raise UnreadableError(CHANGED)
    require_fields(
        metadata,
        {
            "text_set": required(KEY),
            "key": required(KEY),
            "date": TEXT,
            "vectors": MAPPING,
            "off_map": MAPPING,
            "notes": LIST,
        },
    )
    require_own(metadata, text_set=text_set, key=key)
    if not all(np.isfinite(array).all() for array in columns.values() if array.dtype != object):
        raise UnreadableError("has values that are not finite")
    return columns, metadata


def _map_checksum(columns: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> str:
    about = json.dumps({name: value for name, value in metadata.items() if name != "checksum"}, sort_keys=True)
    numbers = [array.astype("<f8").tobytes() for array in columns.values() if array.dtype != object]
    words = json.dumps([[*array] for array in columns.values() if array.dtype == object])
    return content_id([about.encode(), words.encode(), json.dumps([*columns]).encode(), *numbers])


# ---------------------------------------------------------------------------------------------------- noise, exact KL


@dataclass(frozen=True)
class NoRepeatRun:
    """Why a vector has no run-to-run noise: the repeat run `failed`, or would have taken too long. `version` of klscale
    found it so."""

    why: str
    failed: bool
    version: str


def noise_to_json(found: KL | NoRepeatRun, text_set: str, key: str) -> bytes:
    """The record of the KL between two runs of the model with the vector `key`, or why there is none."""
    record = to_record(found)
    return to_json("noise", {"text_set": text_set, "key": key, **(record if isinstance(found, KL) else {NONE: record})})


def noise_from_json(data: bytes, text_set: str, key: str) -> KL | NoRepeatRun:
    """What `noise_to_json` was given; raises one of UNREADABLE."""
    found = from_json("noise", data)
    require_own(found, text_set=text_set, key=key)
    if NONE in found:
        return from_record(NoRepeatRun, found[NONE])
    kl = from_record(KL, found)
    if not all(0 <= number < math.inf for number in (kl.value, kl.standard_error, *kl.interval)):
        raise UnreadableError(f"has a run-to-run noise of {kl.value:.3g} ± {kl.standard_error:.3g} bits/byte")
    return kl


def scale_to_json(settings: list[dict[str, Any]], text_set: str, key: str, resamples: int) -> bytes:
    """The record of a scale: its settings, measured with so many bootstrap samples on what `key` stands for."""
    return to_json("scale", {"text_set": text_set, "key": key, "resamples": resamples, "settings": settings})


def scale_from_json(data: bytes, text_set: str) -> tuple[list[Any], str, int]:
    """What `scale_to_json` was given: the settings, `key` and `resamples`; raises one of UNREADABLE."""
    found = from_json("scale", data)
    require_fields(
        found,
        {"text_set": required(KEY), "key": required(TEXT), "resamples": required(COUNT), "settings": required(LIST)},
    )
    require_own(found, text_set=text_set)
    return found["settings"], found["key"], found["resamples"]


def exact_to_json(record: Mapping[str, Any], text_set: str, key: str) -> bytes:
    """What was measured of the exact KL of two models."""
    checksum = {"checksum": _record_checksum(record)}
    return to_json("exact", {"text_set": text_set, "key": key, **record, **checksum})


def exact_from_json(data: bytes, text_set: str, key: str) -> dict[str, Any]:
    """What `exact_to_json` was given; raises one of UNREADABLE."""
    found = from_json("exact", data)
    require_own(found, text_set=text_set, key=key)
    own = {name: value for name, value in found.items() if name not in ("text_set", "key", "checksum")}
    if found.get("checksum") != _record_checksum(own):
        raise UnreadableError(CHANGED)
    return own


def _record_checksum(record: Mapping[str, Any]) -> str:
    return content_id([json.dumps(record, sort_keys=True).encode()])
