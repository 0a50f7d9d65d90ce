"""What the report shows without interaction: tables from the columns of each result, figures, lists; and the same
results as CSV. Each function takes the contents of a report."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from klscale.errors import InputError
from klscale.science.estimates import Estimate
from klscale.show import cautions, markup
from klscale.show import layers as layer_columns
from klscale.show import scale as scale_columns
from klscale.show import trajectories as run_columns
from klscale.show.cautions import Around, Measured
from klscale.show.columns import Column, estimate, flat, interval, number, within
from klscale.show.contents import Contents
from klscale.show.markup import drawing, escape, listed, table
from klscale.show.pairs import kl
from klscale.show.pictures import layer_threads, quantization_ladder, scale_strip, training_trajectories
from klscale.show.pictures.training import checkpoint_marks
from klscale.show.scale import TO_SCORE
from klscale.show.sentences import settling_step
from klscale.show.terminal import plain
from klscale.studies import scales
from klscale.studies.scales import Setting
from klscale.studies.trajectories import Trajectory

TITLES = {
    "summary": "Findings",
    "scale": "The scale",
    "map": "The map",
    "pairs": "All pairs",
    "trajectories": "Training runs",
    "layers": "Layers",
    "quantization": "Quantization",
    "models": "Models",
    "method": "Method",
}  # fmt: skip
"""Sections of a page, in their order."""
READOUT = {
    "kl_from_first": "KL from first", "kl_from_last": "KL from last", "weights_from_first": "weights from first",
}  # fmt: skip
"""Titles of columns that stand alone, beside no other."""
FIGURES = 12
"""Runs whose figure is drawn: one takes half a second."""


def footnotes(shown: Sequence[Measured | None]) -> str:
    """A line for each mark of the KLs of a table."""
    return listed(cautions.footnotes(shown))


# ------------------------------------------------------------------------------------------------------------ the scale


def ruler(contents: Contents) -> tuple[str, dict[str, float]] | None:
    """The scale as a figure, and where its axis lies: its ends in points and in log10 of bits/byte."""
    try:
        figure = scale_strip(_rows_of_ruler(contents), contents.texts)
    except InputError:
        return None
    axes = figure.axes[0]
    width, height, box = figure.get_figwidth() * 72, figure.get_figheight() * 72, axes.get_position()
    low, high = np.log10(axes.get_xlim())
    axis = {
        "left": box.x0 * width, "right": box.x1 * width, "top": (1 - box.y1) * height, "bottom": (1 - box.y0) * height,
        "low": float(low), "high": float(high),
    }  # fmt: skip
    return drawing(figure, "ruler"), axis


def ruler_note(contents: Contents) -> str:
    """What is drawn in the figure of the scale."""
    rows = _rows_of_ruler(contents)
    said = ["Each row is one way in which two models differ; each dot is such a pair. The bar is the median"]
    said[0] += ", the box holds the middle half." if any(len(row.pairs) > 1 for row in rows) else "."
    if any(row.n_in_range < len(row.pairs) for row in rows):
        said.append("Hollow dots are out of range: distances, no KLs.")
    if scales.published_holds(contents.texts) and any(scales.published_beside(row.setting) for row in rows):
        said.append("Diamonds are published medians.")
    return escape(" ".join(said))


def _rows_of_ruler(contents: Contents) -> list[Setting]:
    """The settings between models, by the estimator of the scale."""
    by = (row.by(contents.scale_by) for row in contents.measured if row.setting != "layer")
    return [row for row in by if row is not None]


def scale(contents: Contents) -> str:
    """The scale as a table; what was not measured is folded."""
    rows = scale_columns.rows(contents.vectors_and_layers, contents.measured)
    holds = scales.published_holds(contents.texts)
    columns = [column for column in scale_columns.SETTING if holds or column.title != "published"]
    made = table(columns, rows, "The scale: KL of each setting", head="setting")
    floor = scales.noise_floor(contents.vectors)
    notes = ["± is the standard error over texts. (range): too few models for an interval. A run counts as one model."]
    notes += [floor.sentence] if floor else []
    made += listed(notes) + footnotes([pair.measured for row in rows for pair in row.pairs])
    if not holds:
        known = [(row.setting.setting, scales.published_beside(row.setting.setting)) for row in rows]
        made += _folded(
            "Published values, of other texts: not comparable",
            table(PUBLISHED, [(setting, one, "") for setting, one in known if one], "Published medians"),
        )
    if missing := scales.not_measured(contents.measured):
        made += _folded(
            f"Not measured here: {', '.join(one.setting for one in missing)}",
            table(PUBLISHED, [(one.setting, one, TO_SCORE[one.setting]) for one in missing], "Not measured"),
        )
    return made


PUBLISHED = (
    Column("", title="setting", cell=lambda it: plain(it[0]), words=True),
    Column("", title="published median, bits/byte", cell=lambda it: f"{it[1].median:#.2g}"),
    Column("", title="compared", cell=lambda it: plain(it[1].compared), words=True),
    Column("", title="source", cell=lambda it: plain(it[1].source), words=True),
    Column("", title="to measure it, score", cell=lambda it: plain(it[2]), words=True),
)


def _folded(title: str, content: str) -> str:
    return f'<details class="quiet"><summary>{escape(title)}</summary>{content}</details>' if content else ""


def scale_files(contents: Contents) -> Iterator[tuple[str, str]]:
    rows = scale_columns.rows(contents.vectors_and_layers, contents.measured)
    setting = [column for column in scale_columns.SETTING if column.key != "pairs"]
    yield (
        "scale",
        markup.csv_text(
            {**flat(setting, row), "n_pairs": len(row.pairs), **_published(row.setting.setting)} for row in rows
        ),
    )
    pairs = [pair for row in rows for pair in row.pairs]
    yield "scale-pairs", markup.csv_text(flat((Column("setting"), *scale_columns.PAIR), pair) for pair in pairs)


def _published(setting: str) -> dict[str, Any]:
    known = scales.published_beside(setting)
    return {"published_median": known and known.median, "published_source": known and known.source}


# -------------------------------------------------------------------------------------------------------- training runs


def runs(contents: Contents) -> tuple[str, list[dict[str, Any]]]:
    """Every run with its figure, notes and checkpoints; then all of them side by side. And what the slider moves
    through: of each checkpoint its numbers, and its marks in the figure."""
    made, slides, options = [], [], []
    for n, one in enumerate(contents.runs):
        figure = training_trajectories([one]) if n < FIGURES else None
        columns = [it for it in run_columns.CHECKPOINT if one.weights is not None or not it.key.startswith("weights")]
        rows = run_columns.rows(one)
        shown = contents.shown(one.run.name)
        options.append(f'<option value="{n}">{escape(shown)}</option>')
        drawn = "" if figure is None else drawing(figure, f"run-{n}")
        label = f"KL along training, growth with lag, stabilisation and path of {one.run.name}"
        picture = f'<figure class="drawing" role="img" aria-label="{escape(label)}">{drawn}</figure>' if drawn else ""
        kls = [measured for row in rows for measured in (row.from_previous, row.from_first, row.from_last)]
        checkpoints = table(columns, rows, f"Checkpoints of {shown}", head="step", tall=len(rows) > 15)
        made.append(
            f'<div id="run-{n}"{" hidden" if n else ""}>{listed(_about(one, contents.threshold_source))}{picture}'
            f"{_folded(f'{len(rows)} checkpoints as a table', checkpoints + footnotes(kls))}</div>"
        )
        slides.append(
            {
                "steps": one.run.steps,
                "readout": [_readout(columns, row) for row in rows],
                "marks": [] if figure is None else checkpoint_marks(figure, one),
            }
        )
    if len(contents.runs) > FIGURES:
        made.append(listed([f"Figures are drawn of the first {FIGURES} runs."]))
    return (
        f'<div class="controls"><label class="grow">Run <select id="trajectory-run">{"".join(options)}</select></label>'
        '<label class="grow">Checkpoint <input id="step" type="range" min="0" value="0" step="1"></label>'
        '<button type="button" id="play" aria-pressed="false">Play</button></div>'
        f'<div id="step-numbers" class="readout"></div>{"".join(made)}{_exponents(contents)}'
    ), slides


def _readout(columns: Sequence[Column], row: Any) -> list[tuple[str, str]]:
    """The numbers of a checkpoint that are known, each with its title."""
    known = ((READOUT.get(it.key, it.title), it.printed(row)) for it in columns if it.title)
    return [(title, text) for title, text in known if text]


def _about(one: Trajectory, source: str) -> Iterator[str]:
    """What to know of a run, how it winds, and from where it has settled."""
    known = "as the run says" if one.run.warmup_known else "taken as one checkpoint spacing; the run does not say"
    yield f"Warm-up ends at step {one.run.warmup:,}: {known}."
    yield from one.run.notes
    curve = one.behaviour.stabilisation
    if curve is not None and curve.threshold is not None and curve.step is not None:
        when = settling_step(curve, one.run.steps)
        yield f"Settled: {when}, within {curve.threshold:.3g} bits/byte of the last checkpoint ({source})."
    for motion in one.motions:
        if motion.shape is not None:
            low, high = motion.shape.nulls["random walk"].winding_range
            spiral = "More than walks do: a spiral." if motion.shape.spiral else "No spiral beyond what walks do."
            yield (
                f"The path in {motion.space} winds {number(motion.shape.winding)} turns; a random walk with the same "
                f"step lengths {low:.2f} to {high:.2f}. {spiral}"
            )


def _exponents(contents: Contents) -> str:
    """The exponents of all runs, and over seeds."""
    moving = run_columns.in_both_spaces(contents.runs)
    if not moving:
        return listed(["No run has enough checkpoints past warm-up for an exponent."])
    made = table(
        (run_columns.RUN, run_columns.SPACE, *within(run_columns.EXPONENT, lambda it: it.exponent)),
        moving, "Diffusion exponents: squared distance grows as lag^c", head="run",
    )  # fmt: skip
    alpha = run_columns.alphas(contents.runs, contents.seeds)
    if alpha:
        made += table(run_columns.ALPHA, alpha, "Log-likelihood space against weight space: alpha = c_q / c_w")
    notes = ["± of one run is over texts; c_w of one run has none. Over seeds, ± of c_w and alpha is over seeds."]
    notes += [
        f"c_q of {len(group.runs)} seeds, ± over seeds: {number(group.c_q_over_seeds)}" for group in contents.seeds
    ]
    if any(row.exponent.heavy_tails for row in moving):
        notes.append(cautions.BY_KEY["heavy_tails"].note)
    return made + listed(notes)


def run_files(contents: Contents) -> Iterator[tuple[str, str]]:
    rows = [row for one in contents.runs for row in run_columns.rows(one)]
    yield "checkpoints", markup.csv_text(flat((run_columns.RUN, *run_columns.CHECKPOINT), row) for row in rows)
    columns = (run_columns.RUN, run_columns.SPACE, *within(run_columns.EXPONENT, lambda it: it.exponent))
    moving = run_columns.in_both_spaces(contents.runs)
    yield "exponents", markup.csv_text(flat(columns, row) for row in moving)


# --------------------------------------------------------------------------------------------------------------- layers


def layers(contents: Contents) -> str:
    """The layers of each model: a figure, and a folded table."""
    try:
        figure = layer_threads(contents.layers)
    except (InputError, ValueError, np.linalg.LinAlgError):  # no text is common to all layers
        figure = None
    found = layer_columns.rows(contents.vectors_and_layers)
    label = escape(f"KL across the layers of {', '.join(contents.shown(model) for model in found)}")
    drawn = "" if figure is None else drawing(figure, "layers")
    made = (
        f'<figure class="drawing" id="layers-drawing" role="img" aria-label="{label}">{drawn}</figure>' if drawn else ""
    )
    for model, rows in found.items():
        shown = [row.from_previous for row in rows] + [row.to_output for row in rows if not row.is_output]
        content = table(layer_columns.LAYER, rows, f"Layers of {contents.shown(model)}", head="layer")
        made += _folded(f"{contents.shown(model)}: {len(rows)} layers as a table", content + footnotes(shown))
    return made


def layer_files(contents: Contents) -> Iterator[tuple[str, str]]:
    rows = [row for found in layer_columns.rows(contents.vectors_and_layers).values() for row in found]
    yield "layers", markup.csv_text(flat(layer_columns.LAYER, row) for row in rows)


# --------------------------------------------------------------------------------------------------------- quantization


@dataclass(frozen=True)
class Rung:
    """A quantized variant of a model, with what the variant above it has less."""

    base: str
    variant: str
    kind: str
    measured: Measured
    more: Estimate | None
    difference: Estimate
    placed: str | None

    @property
    def kl(self) -> Any:
        return self.measured.kl


RUNG = (
    Column("base", "The model."),
    Column("variant", "Its variant."),
    Column("kind", "How it is quantized.", title="variant", cell=lambda it: plain(it.kind), words=True),
    kl("kl", "KL between the two.", lambda it: it.measured, title="KL ± SE, bits/byte"),
    Column("", title="95 % interval", cell=lambda it: interval(it.kl)),
    estimate(
        "more_than_previous", "KL less that of the variant above, paired.", value=lambda it: it.more,
        title="more than the one above", cell=lambda it: "" if it.more is None else number(it.more, sign=True),
    ),
    estimate(
        "bits_per_byte_difference", "Difference in bits/byte from the model: above 0, the variant is worse.",
        value=lambda it: it.difference, title="difference in bits/byte",
        cell=lambda it: number(it.difference, sign=True),
    ),
    Column("placed", "Where the KL lies on the scale.", title="on the scale", cell=lambda it: plain(it.placed or ""),
           words=True),
)  # fmt: skip
"""Of a `Rung`."""


def rungs(contents: Contents) -> dict[str, list[Rung]]:
    """The quantized variants of each model, nearest first."""
    vectors, around, found = contents.vectors, Around(contents.vectors, of_all=True), {}
    for base, variants in contents.ladders.items():
        difference, _ = vectors.subset([base, *variants]).on_common_texts().paired_difference()
        rows = []
        for n, name in enumerate(variants):
            measured = around.pair(base, name)
            more = None if n == 0 else difference((base, name), (base, variants[n - 1]))
            placed = scales.place(measured.kl, contents.texts, contents.measured, (base, name))
            kind = str(vectors.attributes["quantization"][name])
            rows.append(Rung(base, name, kind, measured, more, vectors.bits_per_byte(name, base), placed))
        found[base] = rows
    return found


def quantization(contents: Contents) -> str:
    """The ladder of each model as a figure and a table."""
    figure = quantization_ladder(contents.vectors, contents.measured)
    made = (
        f'<figure class="drawing" id="quantization-drawing" role="img" aria-label="KL of quantized variants">'
        f"{drawing(figure, 'quantization')}</figure>"
    )
    for base, rows in rungs(contents).items():
        level = number(contents.vectors.bits_per_byte(base))
        made += table(RUNG, rows, f"{contents.shown(base)}, {level} bits/byte, and its variants", head="variant")
        made += footnotes([row.measured for row in rows])
    return made


def quantization_files(contents: Contents) -> Iterator[tuple[str, str]]:
    rows = [row for found in rungs(contents).values() for row in found]
    yield "quantization", markup.csv_text(flat(RUNG, row) for row in rows)


# --------------------------------------------------------------------------------------------------------------- models


def models(contents: Contents) -> str:
    """All models with what is known of them, bits per byte first, and buttons that choose a pair."""
    places = range(len(contents.vectors))
    shown = [contents.shown(name) for name in contents.vectors.names]
    columns = [Column("", title="model", cell=lambda n: plain(shown[n]), words=True)]
    common = []
    known = contents.attribute_columns
    for one in [known[-2], *known[:-2], known[-1]]:  # bits per byte first, when it was scored last
        values = one["shown"] if one["shown"] is not None else one["values"]
        if len(places) > 1 and values[0] is not None and len(set(values)) == 1:
            common.append(f"{one['title']} {values[0]}")
            continue
        words = one["kind"] in ("category", "text")
        columns.append(
            Column("value", "", value=_taker(one["values"]), title=one["heading"], cell=_printer(values), words=words)
        )
    caption = "Models" + (f"; of all: {', '.join(common)}" if common else "")
    made = table(columns, places, caption, identity="models-table", head="model", tall=len(places) > 15)
    choose = iter(places)
    made = made.replace("<thead><tr>", '<thead><tr><th scope="col"></th>', 1)
    head, body = made.split("<tbody>")
    rows = body.split("<tr>")
    return head + "<tbody>" + rows[0] + "".join(f"<tr>{_chooser(next(choose), contents)}{row}" for row in rows[1:])


def _taker(values: Sequence[Any]) -> Callable[[int], Any]:
    return lambda n: values[n]


def _printer(values: Sequence[Any]) -> Callable[[int], str]:
    return lambda n: "" if values[n] is None else plain(values[n])


def _chooser(n: int, contents: Contents) -> str:
    """Buttons that choose a model as A or B."""
    name = escape(contents.labels[contents.vectors.names[n]])
    pressed = 'type="button" aria-pressed="false"'
    return '<td class="choose">' + "".join(
        f'<button {pressed} data-choose="{letter}" data-model="{n}" aria-label="Choose {name} as {letter}">{letter}'
        "</button>"
        for letter in "AB"
    ) + "</td>"  # fmt: skip


def model_files(contents: Contents) -> Iterator[tuple[str, str]]:
    columns: dict[str, Sequence[Any]] = {"model": contents.vectors.names}
    for one in contents.attribute_columns:
        columns[one["key"]] = one["values"]
        if one["kind"] == "estimate":
            columns[f"{one['key']}_standard_error"] = one["standard_errors"]
    rows = zip(*columns.values(), strict=True)
    yield "models", markup.csv_text(dict(zip(columns, row, strict=True)) for row in rows)


# --------------------------------------------------------------------------------------------- sentences and the method


def findings(summary: Sequence[dict[str, str]]) -> str:
    """Every sentence, with the section that it is from."""
    items = "".join(
        f'<li>{escape(row["text"])} <a href="#{row["section"]}">{escape(TITLES[row["section"]])}</a></li>'
        for row in summary
    )
    return f'<ul class="lines">{items}</ul>'


def method(said: dict[str, Any]) -> str:
    """What was done, formulas, what the numbers do not say, commands, and sources."""

    def part(title: str, content: str) -> str:
        return f'<div class="part"><h3>{title}</h3>{content}</div>'

    done = "".join(f"<dt>{escape(what)}</dt><dd>{escape(text)}</dd>" for what, text in said["rows"])
    formulas = "".join(
        f'<dt>{escape(what)}</dt><dd><code class="formula">{escape(formula)}</code> '
        f'<span class="quiet">{escape(source)}</span></dd>'
        for what, formula, source in said["formulas"]
    )
    commands = "".join(f'<div class="command"><code>{escape(command)}</code></div>' for command in said["commands"])
    sources = "".join(
        f'<li>{escape(title)}: <a href="{html.escape(address)}" rel="noopener noreferrer" target="_blank">'
        f"{escape(address)}</a></li>"
        for title, address in said["sources"]
    )
    return (
        part("What was done", f'<dl class="definitions">{done}</dl>')
        + part("Formulas", f'<dl class="definitions">{formulas}</dl>')
        + part("What the numbers do not say", listed(said["footguns"], "lines"))
        + part("Commands that print the numbers", commands)
        + part("Sources", f'<ul class="lines">{sources}</ul>')
    )


def method_files(said: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows = [*((*row, "") for row in said["rows"]), *said["formulas"]]
    rows += [("what the numbers do not say", text, "") for text in said["footguns"]]
    yield "method", markup.csv_text({"what": what, "text": text, "source": source} for what, text, source in rows)
