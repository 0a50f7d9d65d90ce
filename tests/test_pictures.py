"""Pictures hold what they promise: every value where it belongs, at column width, nothing over anything else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field, replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from conftest import EXAMPLE
from klscale.errors import InputError
from klscale.inputs.texts import TextSet
from klscale.show import pictures
from klscale.show.names import short_names, shortened, told_apart
from klscale.show.pictures import (
    Look,
    displacement,
    kl_along_training,
    kl_heat_map,
    layer_threads,
    model_map,
    quantization_ladder,
    save,
    scale_ruler,
    scale_strip,
    training_trajectories,
)
from klscale.show.pictures.rulers import DOT
from klscale.show.pictures.style import OTHERS, SMALL, group_looks, looks, plain_ticks
from klscale.show.pictures.training import checkpoint_marks
from klscale.studies import lens, maps, scales
from klscale.studies.trajectories import analyse_run, find_runs
from klscale.vectors.imports import read_log_likelihoods
from klscale.vectors.vectors import CONVENTION, Vectors

HOSTILE = "a $x_1$ <b>set</b> \\frac{"


@dataclass(frozen=True)
class MadeMap:
    """What `model_map` reads of a map."""

    models: tuple[str, ...]
    pca: np.ndarray
    share: np.ndarray
    tsne: np.ndarray | None
    added: np.ndarray
    perplexity: float | None = 5.0
    notes: tuple[str, ...] = field(default=())


def map_of(vectors, added=()):
    found = maps.pca(vectors, 3)
    return MadeMap(
        vectors.names, found.points, found.share, 10 * found.points[:, :2] ** 3, np.isin(np.arange(len(vectors)), added)
    )


def made(names, attributes=None, n_texts=80, seed=0, walk=False, name="made"):
    """Vectors of random models; `walk`: each a step from the one before."""
    moves = np.random.default_rng(seed).normal(size=(len(names), n_texts)) * 3
    texts = TextSet.from_texts(name, [f"{n:0100d}" for n in range(n_texts)])
    plain = {"convention": CONVENTION, "dtype": "float32"}
    known = {name: {**plain, **row} for name, row in zip(names, attributes or [{}] * len(names), strict=True)}
    return Vectors.from_arrays(-100 + (moves.cumsum(axis=0) if walk else moves), names, texts, known)


@pytest.fixture(scope="module")
def vectors():
    return read_log_likelihoods(EXAMPLE, id_column="text_id")


@pytest.fixture(scope="module")
def training():
    """Checkpoints of two seeds, and the squared distances of their weights."""
    steps = [0, *range(100, 1500, 100)]
    names = [f"org/toy-1m-seed{seed}@step{step}" for seed in (1, 2) for step in steps]
    rows = [{"family": "toy", "seed": seed, "step": step, "warmup": 100} for seed in (1, 2) for step in steps]
    return made(names, rows, walk=True)


@pytest.fixture(scope="module")
def runs(training):
    found = []
    for run in find_runs(training):
        weights = np.abs(run.steps[:, None] - run.steps) ** 1.2
        found.append(analyse_run(run, weights, n_parameters=1000, threshold=0.2, resamples=20))
    return found


@pytest.fixture(scope="module")
def quantized():
    names = [f"org/{base}{kind}" for base in ("a-1m", "b-1m") for kind in ("", "+nf4", "+int8", "+fp4")]
    rows = [{"quantization": name.partition("+")[2] or None} for name in names]
    found = made(names, rows)
    near = {"": 0.0, "+nf4": 0.1, "+int8": 0.01, "+fp4": 0.2}
    L = found.log_likelihood
    for n, name in enumerate(names):
        base = 4 * (n // 4)
        if n != base:
            L[n] = L[base] + near[name[name.index("+") :]] * L[n]
    return found


@pytest.fixture(scope="module")
def layered():
    return made([f"org/{name}-1m#{n}" for name in "ab" for n in range(4)], walk=True)


class Made(dict):
    """Each made when it is asked for, once."""

    def __init__(self, **makers):
        super().__init__()
        self.makers = makers

    def __missing__(self, name):
        self[name] = self.makers[name]()
        return self[name]


@pytest.fixture(scope="module")
def figures(vectors, training, runs, quantized, layered):
    """One of each, and those of hostile names."""
    odd = made([f"org/{'very-long-' * 9}{n}" for n in range(7)], [{"family": HOSTILE + str(n % 2)} for n in range(7)],
               name=HOSTILE)  # fmt: skip
    return Made(**{
        "heat": lambda: kl_heat_map(vectors),
        "odd heat": lambda: kl_heat_map(odd),
        "ruler": lambda: scale_ruler(scales.measure(vectors, resamples=5), vectors.texts),
        "map": lambda: model_map(map_of(vectors, [3]), vectors),
        "components": lambda: model_map(map_of(training), training, method="pca", colour_by="step"),
        "threads": lambda: model_map(map_of(training), training, colour_by="seed"),
        "odd map": lambda: model_map(map_of(odd), odd),
        "along": lambda: kl_along_training(runs),
        "displacement": lambda: displacement(runs),
        "training": lambda: training_trajectories(runs),
        "one run": lambda: training_trajectories([replace(runs[0], weights=None, alpha=None)]),
        "layers": lambda: layer_threads(layered),
        "ladder": lambda: quantization_ladder(quantized),
    })  # fmt: skip


NAMES = ["heat", "odd heat", "ruler", "map", "components", "threads", "odd map", "along", "displacement", "training",
         "one run", "layers", "ladder"]  # fmt: skip


def words(figure):
    return [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]


def drawn(figure):
    """What a reader sees of text, with its place."""
    FigureCanvasAgg(figure).draw()
    unseen = {text for axes in figure.findobj(plt.Axes) for text in not_drawn(axes)}
    return [(text, text.get_window_extent()) for text in words(figure) if text not in unseen]


def not_drawn(axes):
    """Labels of ticks beyond the limits, and of axes that are off: they are there and not drawn."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        shown = axes.axison and axis.get_visible()
        yield from () if shown else (axis.label, axis.offsetText)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            inside = shown and low - 1e-9 * abs(low) <= tick.get_loc() <= high + 1e-9 * abs(high)
            yield from () if inside else (tick.label1, tick.label2)


def axes_of(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left").startswith(title))


def points_of(line):
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


# ------------------------------------------------------------------------------------------------------ all pictures


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_fits_its_column(figures, name):
    """One or two columns wide; no text smaller than 6.5 points, none beyond the edge, none over another. What it is
    of is said: how many texts, of which set."""
    figure = figures[name]
    assert figure.get_figwidth() in (3.35, 6.9)
    boxes = drawn(figure)
    n, of = (336, "pile-trained-14") if name in ("heat", "ruler", "map") else (80, HOSTILE if "odd" in name else "made")
    assert any(f"{n} texts of {of}" in text.get_text() for text, _ in boxes)
    assert min(text.get_fontsize() for text, _ in boxes) >= SMALL
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
        assert inside, text.get_text()
    tight = figure.get_tightbbox()
    assert min(tight.x0, tight.y0) >= -0.01
    assert (tight.max <= figure.get_size_inches() + 0.01).all()
    for n, (text, box) in enumerate(boxes):
        shrunk = box.shrunk(0.96, 0.8)  # a line has room for letters that it lacks
        over = [other.get_text() for other, its in boxes[:n] if shrunk.overlaps(its.shrunk(0.96, 0.8))]
        assert not over, (text.get_text(), over)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["along", "threads", "ladder"])
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_bytes_again(figures, name, ending, tmp_path):
    """Whatever the user's settings are; and text is text."""
    save(figures[name], tmp_path / f"a.{ending}")
    with mpl.rc_context({"font.size": 20, "text.usetex": True, "savefig.dpi": 30, "axes.facecolor": "red"}):
        save(figures[name], tmp_path / f"b.{ending}")
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    if ending == "svg":
        assert "bits/byte" in (tmp_path / "a.svg").read_text()


def test_made_in_any_surroundings(vectors):
    """A figure is in the house style from the start, and leaves the user's settings alone."""
    with mpl.rc_context({"font.size": 20, "text.usetex": True, "text.parse_math": True}):
        figure = kl_heat_map(vectors.subset(vectors.names[:4]))
        assert mpl.rcParams["font.size"] == 20
    assert {text.get_fontsize() for text in words(figure)} <= {6.5, 7.0}


def test_names_are_plain_text(figures, tmp_path):
    """A dollar is a dollar, a tag a tag; a long name loses its middle."""
    save(figures["odd map"], tmp_path / "odd.svg")
    assert "a $x_1$ &lt;b&gt;set" in (tmp_path / "odd.svg").read_text()
    assert not any(text.get_parse_math() for text in words(figures["odd map"]))
    assert all("very-long" in text.get_text() for text, _ in drawn(figures["odd heat"]) if "…" in text.get_text())
    assert shortened("abc\n\u202e" + 40 * "x" + "end", 20) == "abc\\n\\u202…xxxxxxend"
    assert short_names(["org/a", "org/b"]) == ["a", "b"]
    assert short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    assert short_names(["d/r/checkpoint-1", "d/r/checkpoint-2"]) == ["r/checkpoint-1", "r/checkpoint-2"]


@pytest.mark.parametrize("longest", [12, 22, 32])
def test_shortened_names_differ_where_the_names_do(longest):
    """In the middle alone, at different depths, one the beginning of another, in letters that are escaped."""
    names = [f"a-rather-long-name-{a}0x-7b-instruct-of-{b}-the-first-version" for a in "abc" for b in "xy"]
    names += ["a-rather-long-name", "a-rather-long-name-a", "b" * 40, "b" * 41 + "c" * 40, "b" * 40 + "\x00" + "c" * 40]
    short = told_apart([*names, names[0]], longest)
    assert len(set(short)) == len(names)
    assert short[0] == short[-1]
    assert max(map(len, short)) <= longest
    assert told_apart(["\x00" + "a" * 40, "\\x00" + "a" * 40], longest)  # these look alike in full too


def test_the_groups_of_many_that_have_a_look_are_the_commonest():
    """As many as there are looks, and with the same look when fewer are named; a group of one model has none."""
    few = ["a", "b", "b", "c"]
    assert group_looks(few) == looks(few)
    assert group_looks(range(60)) == {}
    many = [n for n in range(40) for _ in range(1 + n)]
    found = group_looks(many)
    assert sorted(found) == [*range(13, 40)]
    assert len({*found.values(), OTHERS}) == 28
    named = group_looks(many, 6)
    assert named == {n: found[n] for n in range(35, 40)}


def test_looks_are_those_of_categories_wherever_they_are(figures):
    found = looks(["pythia", "mamba", "pythia", "rwkv"])
    assert found == looks(["rwkv", "pythia", "mamba"])
    assert list(found) == ["mamba", "pythia", "rwkv"]
    assert found["mamba"] == Look("#0072B2", "circle")
    assert list(looks(["seed10", "seed2"])) == ["seed2", "seed10"]
    many = looks(range(28))
    assert len(set(many.values())) == 28
    assert (many[7].colour, many[7].symbol, many[7].marker) == ("#0072B2", "square", "s")
    # the same seed in two pictures: the thread of its run, and the point of its checkpoint
    assert to_hex(figures["threads"].axes[0].collections[0].get_color()[0]) == "#0072b2"


@pytest.mark.slow
def test_the_package_is_light():
    """matplotlib is loaded when something is drawn."""
    code = "import sys, klscale.show.pictures; sys.exit('matplotlib' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ticks_on_a_log_axis_are_plain_and_few():
    for low, high in ((0.08, 0.6), (0.3, 3), (1e-5, 1e2), (1e-9, 1e9), (20, 30)):
        axes = Figure().add_subplot()
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        plain_ticks(axes.xaxis)
        ticks = axes.xaxis.get_major_locator()()
        assert len(ticks) <= 7
        assert all("$" not in label for label in axes.xaxis.get_major_formatter().format_ticks(ticks))


# ---------------------------------------------------------------------------------------------------------- heat map


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 3, 4, 14, 61])
def test_heat_map_of_few_and_of_many(vectors, k):
    """Every cell is the KL of its row and column; beyond 60 models there are no names."""
    many = vectors if k <= 14 else made([f"org/m{n}" for n in range(k)])
    figure = kl_heat_map(many.subset(many.names[:k]))
    FigureCanvasAgg(figure).draw()
    shown = np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))
    kl = many.subset(many.names[:k]).kl().value
    assert shown.shape == (k, k)
    assert np.isnan(shown[np.triu_indices(k)]).all()
    if k <= 14:
        np.testing.assert_allclose(
            np.sort(shown[np.tri(k, k=-1, dtype=bool)]), np.sort(kl[np.tri(k, k=-1, dtype=bool)])
        )
        assert sum(text.get_text().startswith("±") for text in words(figure)) == k * (k - 1) // 2
    assert any("m7" in text.get_text() or "pythia" in text.get_text() for text in words(figure))
    assert len(figure.axes) == (1 if k == 2 else 3)


def test_heat_map_has_names_and_dendrogram_in_one_order(figures, vectors):
    """Names on the diagonal in the order of the leaves; each merge at the mean distance of its two clusters."""
    cells, tree = figures["heat"].axes[:2]
    order = [text.get_text() for text in cells.texts[:14]]
    at = {name.split("/")[1]: n for n, name in enumerate(vectors.names)}
    kl = vectors.kl().value
    shown = np.asarray(cells.images[0].get_array().filled(np.nan))
    for i, j in ((1, 0), (7, 3), (13, 12)):
        assert shown[i, j] == pytest.approx(kl[at[order[i]], at[order[j]]])
    (lines,) = tree.findobj(LineCollection)
    joints = [np.asarray(path.vertices) for path in lines.get_paths()]
    assert len(joints) == 13
    first = min(joints, key=lambda path: path[1, 0])  # the lowest: two leaves side by side
    a, b = (order[int(row)] for row in (first[0, 1], first[3, 1]))
    nearest = kl[~np.eye(14, dtype=bool)].min()
    assert first[1, 0] == pytest.approx(np.sqrt(kl[at[a], at[b]])) == pytest.approx(np.sqrt(nearest))
    root = max(joints, key=lambda path: path[1, 0])
    sides = [
        {k for k in range(14) if subtree(joints, end, root[n, 1]) >= {k}} for n, end in ((0, root[0]), (3, root[3]))
    ]
    mean = np.mean([np.sqrt(kl[at[order[x]], at[order[y]]]) for x in sides[0] for y in sides[1]])
    assert root[1, 0] == pytest.approx(mean)


def subtree(joints, end, row):
    """The rows of the leaves below a joint that is at this height and row."""
    if end[0] == 0:
        return {int(row)}
    joint = next(path for path in joints if path[1, 0] == end[0] and np.mean(path[[1, 2], 1]) == row)
    return subtree(joints, joint[0], joint[0, 1]) | subtree(joints, joint[3], joint[3, 1])


def test_heat_map_of_what_has_no_order():
    found = made(["org/a", "org/b", "org/c"])
    found.log_likelihood[0, :40], found.log_likelihood[1, 40:] = np.nan, np.nan
    with pytest.raises(InputError, match="org/a and org/b have no texts in common"):
        kl_heat_map(found)
    with pytest.raises(InputError, match="no pair"):
        kl_heat_map(made(["org/a"]))
    same = made(["org/a", "org/b", "org/c"])
    same.log_likelihood[:] = same.log_likelihood[0]
    FigureCanvasAgg(kl_heat_map(same)).draw()


# ------------------------------------------------------------------------------------------------------------- ruler


@pytest.mark.slow
def test_ruler(vectors):
    """A row for each setting in order, every pair a dot at its value, the published values beside with their caveat."""
    measured = scales.measure(vectors)
    figure = scale_ruler(measured, vectors.texts)
    (axes,) = figure.axes
    bold = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    assert bold == [row.setting for row in measured]
    dots = iter([part for part in axes.findobj(PathCollection) if len(part.get_offsets())])
    for row in measured:
        values = np.array(row.values)
        for some in (np.array(row.in_range), ~np.array(row.in_range)):  # those out of range are another kind of dot
            if some.any():
                np.testing.assert_allclose(np.asarray(next(dots).get_offsets())[:, 0], values[some])
    assert next(dots, None) is None
    shown = [text.get_text() for text, _ in drawn(figure)]
    assert "0.173 ± 0.011  (26 pairs)" in shown
    assert "0.48" in shown
    assert any("other texts: not comparable" in text for text in shown)


@pytest.mark.slow
def test_dots_out_of_range_are_hollow(vectors):
    row = next(row for row in scales.measure(vectors) if row.setting == "size")
    far = replace(row, in_range=(False, *row.in_range[1:]), n_in_range=25)
    figure = scale_ruler([far], vectors.texts)
    solid, hollow = figure.axes[0].findobj(PathCollection)
    assert (len(solid.get_offsets()), len(hollow.get_offsets())) == (25, 1)
    assert to_hex(hollow.get_facecolor()[0]) == "#ffffff"
    assert to_hex(solid.get_facecolor()[0]) == DOT.lower()
    assert any("out of range" in text.get_text() for text in words(figure))


@pytest.mark.slow
def test_the_scale_in_little_height(vectors):
    """A row for each setting between models in order, its pairs as dots and its median as a bar and in words."""
    measured = [row for row in scales.measure(vectors) if row.setting != "layer"]
    (axes,) = scale_strip(measured, vectors.texts).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [row.setting for row in measured]
    dots = [part.get_offsets() for part in axes.findobj(PathCollection)]
    assert sorted(np.concatenate(dots)[:, 0]) == pytest.approx(sorted(v for row in measured for v in row.values))
    assert [line.get_xdata()[0] for line in axes.lines] == [row.median for row in measured]
    assert [text.get_text() for text in axes.texts] == [f"{row.median:.3g}" for row in measured]


# --------------------------------------------------------------------------------------------------------------- map


def offsets(axes, hollow=None):
    """The points that are drawn, with their colours."""
    found = []
    for part in axes.findobj(PathCollection):
        white = to_hex(part.get_facecolor()[0]) == "#ffffff"
        colours = part.get_edgecolor() if white else part.get_facecolor()
        if hollow is None or white == hollow:
            found += zip(
                map(tuple, np.asarray(part.get_offsets())),
                map(to_hex, np.broadcast_to(colours, (len(part.get_offsets()), 4))),
                strict=True,
            )
    return found


def test_map_has_every_model_where_it_is(figures, vectors):
    """In the colour of its family; the one that was added later is hollow; all of few are named."""
    (axes,) = figures["map"].axes
    found, made_map = dict(offsets(axes)), map_of(vectors, [3])
    family = vectors.attributes["family"]
    look = looks(family)
    assert found == {tuple(made_map.tsne[n]): look[family.iloc[n]].colour.lower() for n in range(14)}
    assert [point for point, _ in offsets(axes, hollow=True)] == [tuple(made_map.tsne[3])]
    assert {text.get_text() for text in axes.texts} == {name.split("/")[1] for name in vectors.names}
    assert "no unit" in axes.get_xlabel()
    assert "no unit" in axes.get_ylabel()


def test_map_of_components_has_units_and_shares(figures, training):
    axes, bar = figures["components"].axes
    found = map_of(training)
    assert set(map(tuple, found.pca[:, :2])) == {point for point, _ in offsets(axes)}
    assert f"{found.share[0]:.0%} of variance" in axes.get_xlabel()
    assert "√(bits/byte)" in axes.get_ylabel()
    assert bar.get_ylabel() == "step"
    assert bar.get_ylim() == (0, 1400)


def test_threads_are_as_wide_as_their_steps_are_long(figures, training):
    """Widths are in proportion to √KL, and the legend says which is which."""
    figure = figures["threads"]
    runs, kl = find_runs(training), training.kl()
    threads = figure.axes[0].findobj(LineCollection)
    scale = set()
    for thread, run in zip(threads, runs, strict=True):
        lengths = [np.sqrt(kl[a, b].value) for a, b in zip(run.names, run.names[1:], strict=False)]
        scale |= {round(w / x, 6) for w, x in zip(thread.get_linewidths(), lengths, strict=True)}
        places = map_of(training).tsne[[training.position(name) for name in run.names]]
        np.testing.assert_allclose([segment[0] for segment in thread.get_segments()], places[:-1])
    (factor,) = scale
    legend = next(one for one in figure.legends if "KL" in one.get_title().get_text())
    for line, text in zip(legend.get_lines(), legend.get_texts(), strict=True):
        assert line.get_linewidth() == pytest.approx(factor * np.sqrt(float(text.get_text())), rel=1e-5)
    named = {text.get_text() for text in figure.axes[0].texts}
    assert named == {"toy-1m-seed1", "toy-1m-seed2", "step 0"}


def test_map_of_many_models():
    """1,018 models of 20 families: two columns, a legend of all, in a moment."""
    many = made([f"org/m{n}" for n in range(1018)], [{"family": f"f{n % 20}"} for n in range(1018)], n_texts=30)
    figure = model_map(map_of(many), many)
    assert figure.get_figwidth() == 6.9
    assert len(offsets(figure.axes[0])) == 1018
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"f{n}" for n in range(20)]


def test_the_legend_of_many_groups_names_the_commonest_and_covers_nothing():
    """No two lines have one mark, and each point has the mark of its line."""
    of = [f"a-family-with-a-long-name-{n}" for n in range(40) for _ in range(1 + (n >= 35))]
    many = made([f"org/m{n}" for n in range(len(of))], [{"family": name} for name in of], n_texts=30)
    figure = model_map(map_of(many), many)
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert [name.rsplit("-", 1)[-1] for name in texts] == ["35", "36", "37", "38", "39", "one model each: 35"]
    marks = [(line.get_color().lower(), line.get_marker()) for line in legend.get_lines()]
    assert len(set(marks)) == 6
    colours = [colour for _, colour in offsets(figure.axes[0])]
    assert {colour: colours.count(colour) for colour, _ in marks} == {
        **{colour: 2 for colour, _ in marks[:5]},
        marks[5][0]: 35,
    }
    figure.draw_without_rendering()
    assert legend.get_window_extent().y1 <= figure.axes[0].get_window_extent().y0


def test_a_map_of_many_pairs_says_how_many_groups_it_does_not_name():
    of = [f"family-{n}" for n in range(60) for _ in range(2)]
    many = made([f"org/m{n}" for n in range(120)], [{"family": name} for name in of], n_texts=30)
    texts = [text.get_text() for text in model_map(map_of(many), many).legends[0].get_texts()]
    assert texts[-1] == f"others: {60 - len(texts) + 1}"


def test_a_heat_map_of_many_models_names_neighbours_of_one_family():
    """The block of each, with its number of models; a model of no family by its name. No name is over another."""
    rng = np.random.default_rng(1)
    family = np.repeat(np.arange(4), 20)
    centre = rng.normal(0, 30, (4, 60))
    log_likelihood = -300 + centre[family] + rng.normal(0, 1, (80, 60))
    alone = -300 + rng.normal(0, 90, (1, 60))
    names = [f"org/m{n}" for n in range(81)]
    texts = TextSet.from_texts("made", [f"{n:0100d}" for n in range(60)])
    known = {name: {"family": f"Family-{n // 20}"} if n < 80 else {} for n, name in enumerate(names)}
    many = Vectors.from_arrays(np.concatenate([log_likelihood, alone]), names, texts, known)
    figure = kl_heat_map(many)
    called = {
        text.get_text(): box for text, box in drawn(figure) if "Family" in text.get_text() or "m80" in text.get_text()
    }
    assert set(called) == {*(f"Family-{n} (20)" for n in range(4)), "m80"}
    boxes = list(called.values())
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])
    assert max(box.x1 for box in boxes) <= figure.bbox.width
    assert kl_heat_map(many.subset(names[:61])) is not None
    names[:20] = [f"org/run@step{n}" for n in range(20)]  # of the first family
    known = {name: {"family": f"Family-{n // 20}"} if n < 80 else {} for n, name in enumerate(names)}
    with_run = kl_heat_map(Vectors.from_arrays(many.log_likelihood, names, texts, known))
    shown = {text.get_text() for text, _ in drawn(with_run)}
    assert {"run (20)", *(f"Family-{n} (20)" for n in range(1, 4)), "m80"} <= shown
    assert "Family-0 (20)" not in shown


def test_map_of_what_is_not_there(vectors):
    found = map_of(vectors)
    with pytest.raises(InputError, match="no attribute 'familie'") as caught:
        model_map(found, vectors, colour_by="familie")
    assert "family" in str(caught.value)
    with pytest.raises(InputError, match="no t-SNE"):
        model_map(replace(found, tsne=None), vectors)
    with pytest.raises(InputError, match="no map by 'umap'"):
        model_map(found, vectors, method="umap")


def test_map_of_one_model():
    one = made(["org/a"])
    figure = model_map(
        MadeMap(one.names, np.zeros((1, 3)), np.zeros(3), np.zeros((1, 2)), np.zeros(1, bool), None), one
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["a"]


# ---------------------------------------------------------------------------------------------------------- training


def test_kl_along_training(figures, runs):
    """Each run's KLs from the first, the previous and the last checkpoint, with bands of 95 %, and the threshold."""
    figure = figures["along"]
    for which, axes in zip(("first", "previous", "last"), figure.axes, strict=True):
        lines = [line for line in axes.lines if len(line.get_xdata()) > 2]
        for one, line, band in zip(runs, lines, axes.collections, strict=True):
            known = [(row.step, kl) for row in one.checkpoints if (kl := getattr(row, f"kl_from_{which}")) is not None]
            steps, value = points_of(line)
            assert steps.tolist() == [step for step, _ in known]
            assert value.tolist() == [kl.value for _, kl in known]
            ends = {tuple(vertex) for vertex in band.get_paths()[0].vertices}
            assert ends >= {(step, end) for step, kl in known for end in kl.interval}
        assert [line.get_ydata()[0] for line in axes.lines if len(line.get_xdata()) == 2] == [0.2]
        assert axes.get_xscale() == "symlog"
    assert figure.axes[0].get_xticklabels()[0].get_text() == "0"
    assert any("threshold of stabilisation: 0.2 bits/byte" in text.get_text() for text in words(figure))


def test_displacement(figures, runs):
    """Means over starts at each lag, lines of the fitted slopes, diffusion beside; and alpha between both spaces."""
    behaviour, weights, both = figures["displacement"].axes
    for axes, space in ((behaviour, "behaviour"), (weights, "weights")):
        *lines, null = axes.lines
        for n, one in enumerate(runs):
            exponent = getattr(one, space).exponent
            lag, value = points_of(lines[2 * n])
            np.testing.assert_allclose(lag, exponent.averages.lag)
            np.testing.assert_allclose(value, exponent.averages.mean_squared_distance)
            assert slope_of(lines[2 * n + 1]) == pytest.approx(exponent.time_averaged.value)
        assert slope_of(null) == pytest.approx(1)
    for n, one in enumerate(runs):
        x, y = points_of(both.lines[2 * n])
        np.testing.assert_allclose(x, one.weights.exponent.averages.mean_squared_distance)
        np.testing.assert_allclose(y, one.behaviour.exponent.averages.mean_squared_distance)
        assert slope_of(both.lines[2 * n + 1]) == pytest.approx(one.alpha.value)
    assert behaviour.get_ylabel().endswith("bits/byte")


def slope_of(line):
    x, y = np.log(points_of(line))
    return (y[-1] - y[0]) / (x[-1] - x[0])


def test_all_of_training_is_of_the_same_panels(figures, runs):
    """What one page holds of KL along training and displacement is what these pictures hold."""
    for name in ("along", "displacement"):
        for axes in figures[name].axes:
            twin = axes_of(figures["training"], axes.get_title(loc="left"))
            for line, other in zip(axes.lines, twin.lines, strict=True):
                np.testing.assert_array_equal(line.get_xydata(), other.get_xydata())
    paths = axes_of(figures["training"], "toy-1m-seed1: components")
    np.testing.assert_array_equal(paths.lines[0].get_xydata(), runs[0].behaviour.shape.pca[:, :2])


@pytest.mark.slow
def test_checkpoints_are_marked_where_they_are_drawn(runs):
    """In points from the upper left corner: the axes' own transform says where each checkpoint lies."""
    figure = training_trajectories(runs[:1])
    first, _, last, settled, tsne, pca, weights = checkpoint_marks(figure, runs[0])
    height = 72 * figure.get_figheight()
    for marks, axes in ((first, figure.axes[0]), (last, figure.axes[2])):
        for step, (x1, y1, x2, y2) in zip(runs[0].run.steps, marks, strict=True):
            there = axes.transData.transform((step, axes.get_ylim()[0])) * 72 / figure.dpi
            assert (x1, height - y1) == pytest.approx(there, abs=0.01)
            assert (x1, y1 > y2) == (x2, True)
    assert all(y1 == y2 and x1 < x2 for x1, y1, x2, y2 in settled)
    shape = runs[0].behaviour.shape
    paths = axes_of(figure, "toy-1m-seed1: components")
    for step, mark in zip(runs[0].run.steps.tolist(), pca, strict=True):
        if step not in shape.steps:
            assert mark is None
            continue
        point = paths.transData.transform(shape.pca[shape.steps.tolist().index(step), :2]) * 72 / figure.dpi
        assert (mark[0], height - mark[1]) == pytest.approx(point, abs=0.01)
        assert mark[:2] == mark[2:]
    assert sum(mark is not None for mark in tsne) == sum(mark is not None for mark in weights) == len(shape.steps)


def test_no_run_is_no_picture(runs):
    for draw in (kl_along_training, displacement, training_trajectories):
        with pytest.raises(InputError):
            draw([])
    still = replace(runs[0], behaviour=replace(runs[0].behaviour, exponent=None))
    with pytest.raises(InputError, match="no displacement"):
        displacement([still])


# ------------------------------------------------------------------------------------------- layers and quantization


def test_layers(figures, layered):
    """Both curves of each model with the ends of their intervals, and every layer on the map."""
    steps, plane = figures["layers"].axes
    curves = steps.containers
    for n, rows in enumerate(lens.layers(layered).values()):
        for curve, kls in zip(curves[2 * n : 2 * n + 2], ([row.from_previous for row in rows[1:]],
                              [row.to_output for row in rows[:-1]]), strict=True):  # fmt: skip
            line, _, (bars,) = curve
            np.testing.assert_allclose(points_of(line)[1], [kl.value for kl in kls])
            ends = [np.asarray(bar, dtype=float)[:, 1] for bar in bars.get_segments()]
            np.testing.assert_allclose(ends, [kl.interval for kl in kls])
            layers = points_of(line)[0]
            assert np.abs(layers - np.round(layers)).max() < 0.2
    assert [text.get_text() for text in plane.get_legend().get_texts()] == ["embedding", "the model itself"]
    from_one = layered.subset([name for name in layered.names if not name.endswith("#0")])
    _, its_plane = layer_threads(from_one).axes
    assert its_plane.get_legend().get_texts()[0].get_text() == "first layer"
    drawn_points = {tuple(point) for line in plane.lines for point in line.get_xydata()}
    assert drawn_points == set(map(tuple, maps.pca(layered).points))


def test_ladder(figures, quantized):
    """For each model its variants, nearest first, KL and the difference in bits per byte, with their intervals."""
    left, right = figures["ladder"].axes
    kl, place = quantized.kl(), 0
    labels = dict(zip(left.get_yticks(), [text.get_text() for text in left.get_yticklabels()], strict=True))
    bars = iter(zip(left.containers, right.containers, strict=True))
    for base in ("org/a-1m", "org/b-1m"):
        assert labels[place] == base.split("/")[1]
        for kind in ("int8", "nf4", "fp4"):
            place += 1
            assert labels[place] == kind
            variant = f"{base}+{kind}"
            for (line, _, (bar,)), estimate in zip(
                next(bars), (kl[base, variant], quantized.bits_per_byte(variant, base)), strict=True
            ):
                np.testing.assert_allclose(np.ravel(points_of(line)), (estimate.value, place))
                np.testing.assert_allclose(bar.get_segments()[0][:, 0], estimate.interval)
        place += 1


def test_ladder_beside_the_scale(quantized):
    row = scales.Setting("seed", 0.1, 0.01, (0.1, 0.1), (0.1, 0.1), "range", (("a", "b"),), (0.1,), (0.0,), (True,),
                         2, 1, 1)  # fmt: skip
    figure = quantization_ladder(quantized, [row])
    assert any(np.allclose(line.get_xdata(), 0.1) for line in figure.axes[0].lines)
    assert any("median of 'seed': 0.1 bits/byte" in text.get_text() for text in words(figure))
    with pytest.raises(InputError, match="no ladder"):
        quantization_ladder(quantized.subset(["org/a-1m", "org/b-1m"]))


def test_nothing_to_draw(vectors):
    with pytest.raises(InputError, match="no scale to draw"):
        scale_ruler([], vectors.texts)
    assert set(pictures.__all__) >= {"group_looks", "kl_heat_map", "model_map", "save"}
