"""What `klscale demo` says at its end, in at most 15 lines: what was found, and the commands that say more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from klscale.show import cautions
from klscale.show.columns import number
from klscale.show.scale import median, rows
from klscale.show.terminal import out, plain, say

if TYPE_CHECKING:
    from klscale.show.verbs import Demo


def print_demo(found: Demo) -> None:
    """The median KL of each setting, two on a line; how the runs move; where the rest is."""
    vectors, settings = found.scale.vectors, rows(found.scale.vectors, found.scale.settings)
    whole = [ref for ref in vectors.models if ref.layer is None]
    out.print(f"{len(whole)} models, {len(vectors.texts):,} texts. How far apart are two models that differ in ...?")
    cells = [f"{plain(row.setting.setting):<16}{median(row):>24}" for row in settings]
    half = -(-len(cells) // 2)
    for n in range(half):
        out.print("   ".join(f"{cell:<44}" for cell in cells[n::half]).rstrip())
    out.print("Median KL ± standard error, bits/byte, nearest first; every number: scale.json", style="dim")
    cautions.print_footnotes(None, (pair.measured for row in settings for pair in row.pairs))
    for seeds in found.trajectories.seeds[:1]:
        say(f"Squared distance along training grows as lag^c, c = {number(seeds.c_q)}; ordinary diffusion has 1.")
    where = f"--store {plain(found.scored.store.location)}"
    last = next(plain(ref) for ref in reversed(whole) if ref.quantization is None)
    out.print(f"The report:       {found.page.resolve().as_uri()}", soft_wrap=True)
    for what, command in (
        ("The whole scale:", f"klscale scale {where}"),
        ("How runs move:", f"klscale trajectory {where}"),
        ("Two models:", f"klscale compare {where} {plain(whole[0])} {last}"),
    ):
        out.print(f"{what:<18}{command}", style="dim", soft_wrap=True)
