"""Limits on what a file may ask for: each one number, with an error at once instead of memory and time.

A limit is raised by an environment variable of its name: `KLSCALE_LIMIT_SUITE_MODELS=1000000`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from klscale.errors import InputError


@dataclass(frozen=True)
class Limit:
    """The largest number of `unit` that is taken."""

    name: str
    default: int
    unit: str

    @property
    def variable(self) -> str:
        """The environment variable that raises it."""
        return f"KLSCALE_LIMIT_{self.name}"

    @property
    def value(self) -> int:
        """The number in force. Raises InputError where the variable holds no whole number."""
        given = os.environ.get(self.variable, "")
        if not given:
            return self.default
        if not (given.isascii() and given.isdigit() and len(given) < 19):
            raise InputError(f"{self.variable}={given[:40]!r} is not a whole number.", remedy="Unset it, or give one.")
        return int(given)

    def require(self, amount: int, place: str) -> None:
        """Raise InputError where `amount` is beyond the limit; `place` names the file, and the line where there is
        one."""
        if amount > self.value:
            raise InputError(
                f"{place}: {amount:,} {self.unit}.",
                f"The limit is {self.value:,}, against files that ask for more than a machine has.",
                f"If it is meant, raise the limit: {self.variable}=NUMBER",
            )


def free_memory() -> int:
    """Bytes of memory of this machine that are free."""
    import psutil  # most commands ask for no memory

    return int(psutil.virtual_memory().available)


def require_memory(needed: int, what: str, remedy: str) -> None:
    """Raise InputError where more bytes are `needed` than are free. `what` begins a sentence: `KL of all takes`."""
    if needed > (free := free_memory()):
        raise InputError(f"{what} about {needed / 1e9:,.1f} GB of memory.", f"{free / 1e9:,.1f} GB are free.", remedy)


SUITE_MODELS = Limit("SUITE_MODELS", 100_000, "models")
SUITE_DEPTH = Limit("SUITE_DEPTH", 20, "levels of nesting")
SUITE_MERGED = Limit("SUITE_MERGED", 10_000, "merged keys")
SUITE_BYTES = Limit("SUITE_BYTES", 10_000_000, "bytes")
TEXT_FILE_BYTES = Limit("TEXT_FILE_BYTES", 4 << 30, "bytes, decompressed")
TABLE_BYTES = Limit("TABLE_BYTES", 2 << 30, "bytes, decompressed")
"""The largest published file has 81 MB."""
PICKLE_CONTAINERS = Limit("PICKLE_CONTAINERS", 1_000_000, "dictionaries and lists")
TEMPLATE_BYTES = Limit("TEMPLATE_BYTES", 1 << 20, "bytes of a chat template")
PROMPT_CHARACTERS = Limit("PROMPT_CHARACTERS", 1 << 24, "characters of a rendered prompt")
VECTOR_BYTES = Limit("VECTOR_BYTES", 4 << 30, "bytes, decompressed")
"""10,000 texts of 10,000 layers have 800 MB."""
VECTOR_LAYERS = Limit("VECTOR_LAYERS", 10_000, "layers")
CARD_BYTES = Limit("CARD_BYTES", 1_000_000, "bytes of a card")

LIMITS = (
    SUITE_MODELS, SUITE_DEPTH, SUITE_MERGED, SUITE_BYTES, TEXT_FILE_BYTES, TABLE_BYTES, PICKLE_CONTAINERS,
    TEMPLATE_BYTES, PROMPT_CHARACTERS, VECTOR_BYTES, VECTOR_LAYERS, CARD_BYTES,
)  # fmt: skip
