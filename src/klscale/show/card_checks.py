"""The check of a card: each value and each line of it beside what its numbers give."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from klscale.errors import InputError, KlscaleError, UnreadableError
from klscale.inputs.suites import BoundedLoader
from klscale.inputs.texts import NAMED
from klscale.limits import CARD_BYTES, VECTOR_BYTES
from klscale.show.cards import BEGIN, END, VERSION, Card, body_of, front_matter, measured_card
from klscale.show.columns import Column, record, table
from klscale.show.terminal import out, plain, say
from klscale.store.card_numbers import numbers_from_parquet
from klscale.store.files import Files
from klscale.store.records import UNREADABLE, problem
from klscale.studies.cards import variants_of
from klscale.studies.verbs.options import Options

ALIKE = 1e-6
"""Relative difference of two numbers that are computed from the same file on two machines."""
NEAR = 0.25
"""Standard errors by which a value may differ when the models are scored again."""
SHORT = 30
"""Characters of a text in a cell."""
CHECK = (
    Column("what", "A value or a line of the card.", title="what", words=True, cell=lambda it: plain(it.what),
           importance=2),
    Column("stated", "As the card has it.", title="in the card", cell=lambda it: plain(_short(it.stated, it.found)),
           importance=2),
    Column("found", "As it was computed now.", title="computed", cell=lambda it: plain(_short(it.found, it.stated)),
           importance=2),
    Column("agrees", "Whether they agree.", title="agrees", cell=lambda it: "yes" if it.agrees else "NO", importance=2),
)  # fmt: skip
"""Of a `Checked`."""
CHECKS = (
    Column("file", "The card."),
    Column("agrees", "Whether all of it agrees."),
    Column("rescored", "Whether the models were scored again."),
    Column("checks", "Each value and each line that differs.", within=CHECK, many=True),
)
"""Of a `CardCheck`."""


@dataclass(frozen=True)
class Checked:
    """A value or line of a card, as it is `stated` and as it was `found` now."""

    what: str
    stated: Any
    found: Any
    agrees: bool


@dataclass(frozen=True)
class CardCheck:
    """The check of the card in `file`: each value, and each line that differs. `rescored`: the models were scored
    again."""

    file: Path
    checks: tuple[Checked, ...]
    rescored: bool = field(default=False)

    @property
    def agrees(self) -> bool:
        """Whether all of it agrees."""
        return all(one.agrees for one in self.checks)

    def __str__(self) -> str:
        wrong = [f"{one.what}: {one.stated} in the card, {one.found} now" for one in self.checks if not one.agrees]
        return "\n".join([*wrong, f"{len(self.checks) - len(wrong)} of {len(self.checks)} agree."])


def check_card(file: str | os.PathLike[str], *, rescore: bool = False, options: Options = Options()) -> CardCheck:
    """Which values and lines of a card agree with the numbers beside it: values to six digits, lines of text as they
    are.

    `rescore`: score the models again too, on the texts of `options`, and compare the values. They agree within a
    quarter of their standard error; the models are the same by their commit or the hash of their files.

    Raises InputError for a file that is no card, and KlscaleError for numbers that are missing or damaged.

        assert klscale.check_card("card.md").agrees
    """
    place = Path(file)
    stated, body = read_card(place)
    name = _named(place, stated)
    data = _numbers_beside(place, name)
    try:
        numbers = numbers_from_parquet(data)
        found = Card(numbers, variants_of(numbers))
    except UNREADABLE as error:
        raise KlscaleError(f"{name} {problem(error)}.", "Its numbers cannot be checked.") from error
    front = front_matter(found, name, hashlib.sha256(data).hexdigest())
    checks = [*_compared(_own(stated), front), *_compared_lines(body, body_of(found, name).splitlines())]
    if rescore:
        checks += _compared_again(front, found, options)
    return CardCheck(place, tuple(checks), rescore)


class _Plain(BoundedLoader):
    """YAML of plain data: no tags, no anchors, no references."""

    def fetch_tag(self) -> None:
        """Refuse a tag."""
        self._refuse("a tag")

    def fetch_anchor(self) -> None:
        """Refuse an anchor."""
        self._refuse("an anchor")

    def fetch_alias(self) -> None:
        """Refuse a reference to an anchor."""
        self._refuse("a reference")

    def _refuse(self, what: str) -> None:
        raise yaml.scanner.ScannerError(None, None, f"{what} is not read", self.get_mark())


def read_card(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The data in front of a page, and the lines of its card. Raises InputError where it has none."""
    try:
        CARD_BYTES.require(file.stat().st_size, str(file))
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read.", f"{getattr(error, 'strerror', None) or error}.") from error
    front = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    _, begun, rest = text.partition(BEGIN)
    body, ended, _ = rest.partition(END)
    if front is None or not begun or not ended:
        what, why = f"{file} is no card.", f"A card has YAML in front, and text from {BEGIN} on."
        raise InputError(what, why, "klscale card BASE VARIANT... --out FILE.md")
    try:
        found = yaml.load(front[1], Loader=_Plain)  # noqa: S506 - a SafeLoader
    except InputError as error:
        raise error.at(str(file)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = str(getattr(error, "problem", None) or type(error).__name__)
        raise InputError(f"{file}: its YAML cannot be read.", f"{why}.") from error
    if not isinstance(found, dict) or not isinstance(found.get("klscale"), dict):
        raise InputError(f"{file} is no card.", "Its YAML has nothing under 'klscale'.")
    return found, body.strip("\r\n").splitlines()


def _named(file: Path, stated: Mapping[str, Any]) -> str:
    """The name of the file with the numbers."""
    name, version = stated["klscale"].get("numbers"), stated["klscale"].get("card")
    if version != VERSION:
        raise InputError(f"{file}: a card of version {str(version)[:20]!r}.", f"This klscale reads version {VERSION}.")
    if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0\r\n.][^/\\\0\r\n]*\.parquet", name):
        what = f"{file}: its numbers are in {str(name)[:60]!r}."
        raise InputError(what, "They are in a .parquet file in the directory of the card.", "Mend the name.")
    return name


def _numbers_beside(card: Path, name: str) -> bytes:
    """The file of a card's numbers, from its own directory."""
    try:
        files = Files(str(card.resolve().parent))
        path = Path(files.path(name))
        VECTOR_BYTES.require(path.stat().st_size, name)
        return files.read(str(path))
    except (OSError, UnreadableError) as error:
        why = "A card can be checked with the file of its numbers beside it."
        raise KlscaleError(f"{name} {problem(error)}.", why, "Put it there.") from error


def _own(stated: Mapping[str, Any]) -> dict[str, Any]:
    """What of a page's YAML is the card's: the rest is not read."""
    return {key: stated.get(key) for key in ("model-index", "klscale")}


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every single value with its place; items of a list by their name or type, the second of a name by its number."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, (*path, str(key)))
    elif isinstance(value, list) and value:
        labels = set[str]()
        for n, one in enumerate(value):
            named = one if isinstance(one, Mapping) else {}
            label = next((str(named[key]) for key in ("type", "name", "model") if key in named), str(n))
            yield from _leaves(one, (*path, f"{label} ({n})" if label in labels else label))
            labels.add(label)
    else:
        yield path, value


def _compared(stated: Any, found: Any) -> list[Checked]:
    """Each single value of the YAML."""
    there, now = dict(_leaves(stated)), dict(_leaves(found))
    return [
        Checked(_place(path), there.get(path), now.get(path), path in there and path in now
                and _alike(there[path], now[path]))
        for path in dict.fromkeys([*now, *there])
    ]  # fmt: skip


def _place(path: tuple[str, ...]) -> str:
    """The place of a value, without what each has: `model-index`, `results`, the task, `metrics`."""
    if path[0] == "model-index" and len(path) > 4 and path[4] == "metrics":
        return ", ".join((path[1], *path[5:]))
    return ", ".join(path)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (a, b))
        return numbers and math.isclose(a, b, rel_tol=ALIKE, abs_tol=1e-12)
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _compared_lines(stated: Sequence[str], found: Sequence[str]) -> list[Checked]:
    """The lines of the text that differ; one row where none does."""
    longest = max(len(stated), len(found))
    there, now = ([*lines, *[None] * (longest - len(lines))] for lines in (stated, found))
    wrong = [
        Checked(f"text, line {n}", a, b, False) for n, (a, b) in enumerate(zip(there, now, strict=True), 1) if a != b
    ]
    return wrong or [Checked("text", f"{len(stated)} lines", f"{len(found)} lines", True)]


def _compared_again(stated: Mapping[str, Any], old: Card, options: Options) -> list[Checked]:
    """The values of a card against those of the same models scored now."""
    texts = old.texts
    if options.texts is None:
        options = replace(options, texts=texts.name if texts.name in NAMED else texts.id)
    if (chosen := options.chosen(options.opened())).id != texts.id:
        what = f"{chosen.name} ({chosen.id}) are not the texts of the card, {texts.name} ({texts.id})."
        raise InputError(what, remedy="Give those with --texts.")
    n_texts = max((one.exact.mean.n_texts for one in old.variants if one.exact is not None), default=0)
    made = measured_card(old.numbers.names, n_texts, replace(options, texts=chosen, rescore=True))
    checks = []
    now = {about["ref"]: about for about in made.measured}
    for about in old.measured:
        was, new = (one.get("content") or one.get("identity") for one in (about, now.get(about["ref"], {})))
        checks.append(Checked(f"scored again, {about['ref']}, files", was, new, was == new))
    again = {(model["name"], one["type"]): one for model, one in _all_metrics(front_matter(made, "", ""))}
    for model, one in _all_metrics(stated):
        new = again.get((model["name"], one["type"]), {})
        value, error = new.get("value"), one["args"].get("standard_error") or 0.0
        near = value is not None and abs(value - one["value"]) <= NEAR * error + ALIKE * abs(one["value"])
        checks.append(Checked(f"scored again, {model['name']}, {one['type']}", one["value"], value, near))
    return checks


def _all_metrics(front: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for model in front["model-index"]:
        for one in model["results"][0]["metrics"]:
            yield model, one


def check_record(found: CardCheck) -> dict[str, Any]:
    """A check for a machine."""
    return record(CHECKS, SimpleNamespace(**{**vars(found), "file": str(found.file), "agrees": found.agrees}))


def print_check(found: CardCheck) -> None:
    """What differs, or what agrees; then the answer in a line."""
    wrong = [one for one in found.checks if not one.agrees]
    values = [one for one in found.checks if isinstance(one.found, float)]
    out.print(table(CHECK, wrong or values, f"\n{'What differs' if wrong else 'Values'}"))
    of = f"{len(found.checks):,} values and texts of {plain(found.file)}"
    if wrong:
        say(f"{len(wrong):,} of {of} do not agree with its numbers.", "bold red")
    else:
        say(f"All {of} agree with its numbers{', and with the models scored again' if found.rescored else ''}.")


def _short(value: Any, other: Any) -> str:
    """A value in a cell; of a long text the part from shortly before it differs from the other on."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if len(text) <= SHORT:
        return text
    same = next((n for n, (a, b) in enumerate(zip(text, str(other), strict=False)) if a != b), 0)
    start = max(0, same - SHORT // 3)
    return ("…" if start else "") + text[start : start + SHORT]
