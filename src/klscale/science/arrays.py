"""The arrays that the package computes with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Documents = Sequence[Any] | NDArray[Any] | None
"""A label (N,) for each text: texts with the same label come from one document. None: no two texts share one."""
