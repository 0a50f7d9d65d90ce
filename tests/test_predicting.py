"""Scores predicted from log-likelihoods: the regression, its honest errors, and what is read of a file of scores."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import klscale
from conftest import EXAMPLE
from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.science.ridge import ALPHAS, group_folds, ridge
from klscale.studies.predicting import groups_of, predict_scores
from klscale.vectors.imports import read_log_likelihoods, read_scores
from klscale.vectors.vectors import Vectors

NEW = ("RWKV/rwkv-4-169m-pile", "RWKV/rwkv-4-430m-pile")


def primal(X, y, new, alpha):
    """Ridge regression with N coefficients and an intercept, as books have it."""
    middle, mean = X.mean(axis=0), y.mean()
    D = X - middle
    return mean + (new - middle) @ np.linalg.solve(D.T @ D + alpha * np.eye(X.shape[1]), D.T @ (y - mean))


def simulated(seed, n_groups, n_each, *, group_noise=3.0, noise=3.0, n_new=4, n_texts=120, factors=4):
    """Models with a score that is linear in what moves their log-likelihoods, and groups without scores."""
    generator = np.random.default_rng(seed)
    G = n_groups + n_new
    latent = np.repeat(generator.normal(size=(G, factors)), n_each, axis=0)
    latent += 0.7 * generator.normal(size=latent.shape)
    L = -600 + generator.normal(0, 40, size=n_texts) + 20 * latent @ generator.normal(size=(factors, n_texts))
    L += 5 * generator.normal(size=L.shape)
    y = 10 * latent @ generator.normal(size=factors) + np.repeat(group_noise * generator.normal(size=G), n_each)
    y += noise * generator.normal(size=len(y))
    names = [f"t{g}-m{m}" for g in range(G) for m in range(n_each)]
    known = {name: {"type": name.split("-")[0]} for name in names}
    return Vectors.from_arrays(L, names, np.full(n_texts, 300), known), names, y


@pytest.fixture(scope="module")
def fourteen_vectors():
    return read_log_likelihoods(EXAMPLE, id_column="text_id")


@pytest.fixture(scope="module")
def sizes(fourteen_vectors):
    """log10 of the parameters of each model, as scores."""
    known = zip(fourteen_vectors.names, fourteen_vectors.known, strict=True)
    return {name: float(np.log10(row["parameters"])) for name, row in known}


def test_the_dual_form_is_ridge_regression():
    generator = np.random.default_rng(0)
    X, Y = generator.normal(-500, 30, size=(12, 40)), generator.normal(50, 10, size=(12, 2))
    train, test = np.arange(9), np.array([9, 10, 11, 2])
    found = ridge(X @ X[:9].T, Y, train, test)
    for n, alpha in enumerate(ALPHAS):
        for t in range(2):
            assert found[n, :, t] == pytest.approx(primal(X[train], Y[train, t], X[test], alpha), rel=1e-7)


def test_groups_stay_whole_and_folds_are_even():
    groups = np.repeat(np.arange(12), [9, 1, 1, 5, 4, 2, 7, 1, 3, 3, 2, 2])
    folds = group_folds(groups)
    assert all(len({*folds[groups == group]}) == 1 for group in range(12))
    assert set(np.bincount(folds)) <= {7, 8, 9}
    assert len({*group_folds(groups[:11])}) == 3


def test_errors_are_those_of_models_whose_type_was_never_seen(fourteen_vectors, sizes):
    """The same by hand: each type is left out, and the penalty is chosen by leaving out types of the rest."""
    scores = {name: size for name, size in sizes.items() if name not in NEW}
    (found,) = predict_scores(fourteen_vectors, {"size": scores})
    L = fourteen_vectors.log_likelihood
    Q = L - L.mean(axis=1, keepdims=True)
    rows = {name: Q[fourteen_vectors.position(name)] for name in sizes}
    kind = {name: name.split("-")[0] if "state" not in name else "mamba" for name in sizes}

    def by(train, test, alpha):
        X = np.array([rows[name] for name in train])
        new = np.array([rows[name] for name in test])
        return primal(X, np.array([scores[name] for name in train]), new, alpha)

    def folded(names, alpha):
        guess = {}
        for left_out in {kind[name] for name in names}:
            test = [name for name in names if kind[name] == left_out]
            train = [name for name in names if kind[name] != left_out]
            guess |= dict(zip(test, by(train, test, alpha(train)), strict=True))
        return guess

    def best(names):
        def error(alpha):
            return sum((guess - scores[name]) ** 2 for name, guess in folded(names, lambda _: alpha).items())

        return min(ALPHAS, key=error)

    guesses = folded([*scores], best)
    assert {row.model: row.predicted.value for row in found.held_out} == pytest.approx(guesses)
    error = np.sqrt(np.mean([(guesses[name] - size) ** 2 for name, size in scores.items()]))
    space, one_number, nothing = found.methods
    assert space.root_mean_squared_error.value == pytest.approx(error)
    assert space.pearson.value == pytest.approx(
        np.corrcoef([guesses[name] for name in scores], [*scores.values()])[0, 1]
    )
    assert one_number.worse.value == pytest.approx(one_number.root_mean_squared_error.value - error)
    assert nothing.pearson is None
    assert found.is_told
    assert found.alpha == best([*scores])
    new = {row.model: row.predicted.value for row in found.new}
    assert new == pytest.approx(dict(zip(NEW, by([*scores], NEW, found.alpha), strict=True)))


def test_mean_log_likelihood_alone_is_a_line_through_other_types():
    vectors, names, y = simulated(1, 6, 3)
    scores = dict(zip(names[:18], y, strict=False))
    (found,) = predict_scores(vectors, {"score": scores})
    x, errors = vectors.log_likelihood.mean(axis=1)[:18], []
    fold = group_folds(np.repeat(np.arange(6), 3))
    for n in range(fold.max() + 1):
        line = np.polyfit(x[fold != n], y[:18][fold != n], 1)
        errors += [*(np.polyval(line, x[fold == n]) - y[:18][fold == n])]
    assert found.methods[1].root_mean_squared_error.value == pytest.approx(np.sqrt(np.mean(np.square(errors))))


def test_a_models_own_type_never_predicts_it():
    """Other scores of one type leave its own predictions as they were."""
    vectors, names, y = simulated(2, 5, 3)
    one, other = (dict(zip(names[:15], y + shift, strict=False)) for shift in (0, np.repeat([50, 0], [3, len(y) - 3])))
    before, after = (predict_scores(vectors, {"score": scores})[0].held_out for scores in (one, other))
    assert [row.predicted.value for row in after[:3]] == [row.predicted.value for row in before[:3]]
    assert [row.predicted.value for row in after[3:]] != [row.predicted.value for row in before[3:]]


def test_several_benchmarks_with_gaps_are_as_each_alone():
    vectors, names, y = simulated(3, 6, 3)
    many = {
        "a": dict(zip(names[:18], y, strict=False)),
        "b": dict(zip(names[:15], -y, strict=False)),
        "c": dict(zip(names[:18], y**2, strict=False)),
    }
    for found, (name, scores) in zip(predict_scores(vectors, many), many.items(), strict=True):
        (alone,) = predict_scores(vectors, {name: scores})
        assert found.benchmark == name
        assert found.alpha == alone.alpha
        assert [row.model for row in found.new] == names[len(scores) :]
        for ours, theirs in zip(found.new, alone.new, strict=True):
            assert ours.predicted.value == pytest.approx(theirs.predicted.value, rel=1e-9)


def test_relatives_are_one_group():
    """Variants, checkpoints and fine-tuned models without a type of their own are held out with what they are of."""
    names = ["org/base", "org/base+int8", "org/base@step10", "org/tuned", "alone", "child-of-none"]
    known = {
        "org/base": {"type": "lineage"}, "org/base+int8": {"type": None}, "org/base@step10": {"type": None},
        "org/tuned": {"parent": "org/base"}, "child-of-none": {"parent": "org/elsewhere"},
    }  # fmt: skip
    vectors = Vectors.from_arrays(-np.ones((6, 3)), names, [4, 4, 4], known)
    assert groups_of(vectors) == (*["lineage"] * 4, "alone", "org/elsewhere")


def test_a_benchmark_that_cannot_be_predicted_leaves_the_others(fourteen_vectors, sizes):
    notes = []

    class Heard(klscale.Progress):
        def note(self, message):
            notes.append(message)

    scores = {"shots": dict.fromkeys(sizes, 5.0), "size": sizes, "rare": {NEW[0]: 1.0}}
    found = predict_scores(fourteen_vectors, scores, progress=Heard())
    assert [one.benchmark for one in found] == ["size"]
    assert [note.split(":")[1] for note in notes] == [" shots", " rare"]


def test_predictions_stay_within_the_range_of_scores():
    vectors, names, y = simulated(4, 5, 3)
    share = (y - y[:15].min()) / np.ptp(y[:15])
    (found,) = predict_scores(vectors, {"share": dict(zip(names[:15], share, strict=False))})
    assert found.limits == (0, 1)
    ends = np.array([row.predicted.interval for row in (*found.held_out, *found.new)])
    assert ends.min() == 0
    assert ends.max() == 1
    (found,) = predict_scores(vectors, {"elo": dict(zip(names[:15], y * 100, strict=False))})
    assert found.limits is None


def test_a_model_far_from_all_is_marked():
    vectors, names, y = simulated(5, 6, 3, n_new=1)
    L = vectors.log_likelihood.copy()
    L[-1] += 300 * np.random.default_rng(0).normal(size=L.shape[1])
    L[-1] = np.minimum(L[-1], 0)
    far = Vectors.from_arrays(
        L, names, np.full(L.shape[1], 300), {name: {"type": name.split("-")[0]} for name in names}
    )
    (found,) = predict_scores(far, {"score": dict(zip(names[:18], y, strict=False))})
    assert [row.is_far for row in found.new] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize(("n_groups", "n_each", "group_noise", "noise"), [(4, 4, 3, 3), (10, 3, 3, 3), (20, 2, 5, 0.1)])
def test_intervals_cover_models_of_new_types(n_groups, n_each, group_noise, noise):
    """95 % intervals hold the scores of models whose types were not there, from 4 types or many."""
    covered = []
    for seed in range(30):
        vectors, names, y = simulated(seed, n_groups, n_each, group_noise=group_noise, noise=noise)
        known, truth = n_groups * n_each, dict(zip(names, y, strict=True))
        (found,) = predict_scores(vectors, {"score": dict(zip(names[:known], y, strict=False))})
        ends = [(truth[row.model], *row.predicted.interval) for row in found.new]
        covered.append(np.mean([low <= score <= high for score, low, high in ends]))
    assert np.mean(covered) > 0.95 - 2 * np.std(covered) / np.sqrt(len(covered)) - 0.01


@pytest.mark.slow
def test_scores_that_are_noise_are_not_told():
    """Where log-likelihoods say nothing of the scores, the error is that of the mean score."""
    vectors, names, _ = simulated(6, 10, 3)
    y = np.random.default_rng(0).normal(50, 5, size=30)
    (found,) = predict_scores(vectors, {"noise": dict(zip(names[:30], y, strict=False))})
    space, *_, mean = (method.root_mean_squared_error.value for method in found.methods)
    assert space > 0.9 * mean
    assert found.new[0].predicted.standard_error > 0.8 * y.std()


# ------------------------------------------------------------------------------------------------ files and refusals


def test_files_as_people_have_them(tmp_path):
    models, notes = ["org/a", "org/b", "c+int8", str(ModelRef("a 50% merge"))], []

    class Heard(klscale.Progress):
        def note(self, message):
            notes.append(message)

    file = tmp_path / "scores.csv"
    file.write_text(
        "# a leaderboard\nrank;Model;licence;MMLU;ARC\n1;org/a;mit;61,7;40,0\n2;org/b;apache;59,25;-\n"
        "3;x/y;mit;50,0;20,0\n4;c+int8;;41,5;33,0\n5;a 50% merge;;30,5;\n",
        encoding="utf-8",
    )
    found = read_scores(file, models, progress=Heard())
    assert found["MMLU"] == {"org/a": 61.7, "org/b": 59.25, "x/y": 50, "c+int8": 41.5, models[3]: 30.5}
    assert found["ARC"] == {"org/a": 40, "x/y": 20, "c+int8": 33}
    assert any("licence" in note for note in notes)
    assert any("1 of 5 models have no vector here: x/y" in note for note in notes)
    for text, why in (
        ("model,score\norg/A,1\n", "Did you mean 'org/a'"),
        ("model,score\norg/a,1\norg/b,2\norg/a,3\n", "row 3: 'org/a' again"),
        ("model,score\norg/a,61 %\norg/b,2 %\n", "no column of numbers"),
        ("score\n1\n2\n", "no column names a model"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=why):
            read_scores(file, models)


def test_too_few_models_or_types_are_refused(fourteen_vectors, sizes):
    nine = dict([*sizes.items()][:9])
    with pytest.raises(InputError, match="9 of 14 models have a score; 10 are needed"):
        predict_scores(fourteen_vectors, {"size": nine})
    with pytest.raises(InputError, match="Did you mean 'state-spaces/mamba-130m-hf'"):
        predict_scores(fourteen_vectors, {"size": {**nine, "state-spaces/mamba-130m": 8.1}})
    vectors, names, y = simulated(7, 2, 6, n_new=1)
    with pytest.raises(InputError, match="2 types; 3 are needed"):
        predict_scores(vectors, {"score": dict(zip(names[:12], y, strict=False))})
    with pytest.raises(InputError, match="all 14 models have the score 1"):
        predict_scores(fourteen_vectors, {"size": dict.fromkeys(sizes, 1.0)})


def test_the_command(run, fourteen, sizes, tmp_path):
    file, table, picture = tmp_path / "scores.csv", tmp_path / "all.csv", tmp_path / "all.png"
    lines = ["model,size", *(f"{name},{size}" for name, size in sizes.items() if name not in NEW)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    shown = run("predict", "--scores", file, "--store", fourteen, "--out", picture).stdout
    assert picture.stat().st_size > 5000
    found = json.loads(run("predict", "--scores", file, "--store", fourteen, "--json", "--out", table).stdout)
    (one,) = found["predictions"]
    assert (one["benchmark"], one["n_models"], one["n_groups"]) == ("size", 12, 3)
    assert [row["model"] for row in one["new"]] == [*NEW]
    for row in one["new"]:
        assert row["model"] in shown
        assert f"{row['predicted']['value']:.2f} ±" in shown
        assert row["predicted"]["interval_low"] < sizes[row["model"]] < row["predicted"]["interval_high"]
    with table.open(encoding="utf-8") as rows:
        saved = {row["model"]: row for row in csv.DictReader(rows)}
    assert {*saved} == {*sizes}
    assert saved[NEW[0]]["score"] == ""
    assert float(saved[NEW[0]]["predicted"]) == one["new"][0]["predicted"]["value"]
    assert "cannot be read" in run("predict", "--scores", tmp_path / "none.csv", "--store", fourteen, status=2).output


def test_the_verb(fourteen, sizes):
    scores = {name: size for name, size in sizes.items() if name not in NEW}
    found = klscale.predict({"size": scores}, store=fourteen)
    assert f"{NEW[0]}: size {found.predictions[0].new[0].predicted}" in str(found)
    assert NEW[0] in found._repr_html_()
