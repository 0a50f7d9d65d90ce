"""Layers through the logit lens: against hidden states that transformers gives out, and against the model itself."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ARCHITECTURES, plain_log_likelihoods, write_texts
from klscale.errors import InputError, KlscaleError
from klscale.inputs.references import ModelRef
from klscale.show import pictures
from klscale.show.contents import read_contents
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.load import load
from klscale.sources.transformers.readout import find_readout
from klscale.sources.transformers.tokens import tokenize
from klscale.store.store import Store
from klscale.studies import lens, maps
from klscale.studies.verbs.layers import layers as layers_verb
from klscale.sweep.score import score
from klscale.vectors.imports import read_log_likelihoods

CAUSAL = [name for name in ARCHITECTURES if "bidirectional" not in name]


def layers_of(directory, texts, *, batch_tokens=None, dtype="float32", quantization=None):
    loaded = load(resolve(ModelRef(str(directory), dtype=dtype, quantization=quantization)))
    engine = Engine(loaded, device="cpu", batch_tokens=batch_tokens, layers=True)
    found = list(engine.score(tokenize(loaded.tokenizer, texts), range(len(texts))))
    order = np.argsort(np.concatenate([part.text for part in found]))
    for part in found:
        assert (part.layers[:, -1] == part.log_likelihood).all()
    return np.concatenate([part.layers for part in found])[order], engine


def plain_layers(directory, texts, norm, project=None):
    """Every layer of every text, one text at a time, from `output_hidden_states` and modules by their names."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer, modules = AutoTokenizer.from_pretrained(directory), dict(model.named_modules())
    values = []
    with torch.no_grad():
        for text in texts.texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
            rows = []
            for n, state in enumerate(states):
                given = state[0, :-1]
                if n < len(states) - 1:  # the last one is normed already
                    given = modules[norm](given)
                    given = modules[project](given) if project else given
                logits = model.get_output_embeddings()(given).double()
                rows.append(logits.log_softmax(dim=-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().item())
            values.append(rows)
    return np.array(values)


@pytest.mark.parametrize(
    ("architecture", "norm"),
    [
        ("gpt-neox", "gpt_neox.final_layer_norm"),
        ("llama, grouped queries", "model.norm"),
        ("gpt2, tied", "transformer.ln_f"),
        ("opt, projected", "model.decoder.final_layer_norm"),
        ("bloom", "transformer.ln_f"),
    ],
)
def test_layers_agree_with_a_plain_loop(architecture, norm, make_model, few_texts):
    directory = make_model(architecture=architecture)
    values, _ = layers_of(directory, few_texts, batch_tokens=300)
    project = "model.decoder.project_out" if "projected" in architecture else None
    np.testing.assert_allclose(values, plain_layers(directory, few_texts, norm, project), atol=1e-3, rtol=0)
    assert np.abs(np.diff(values, axis=1)).mean() > 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CAUSAL)
def test_the_last_layer_is_the_model(architecture, make_model, few_texts):
    """For every architecture that scoring is tested on, to 1e-3 nats a text; all texts in the one batch that the
    engine checks."""
    directory = make_model(architecture=architecture)
    values, engine = layers_of(directory, few_texts, batch_tokens=100_000)
    assert engine.lens_error is not None
    assert engine.lens_error <= 1e-3
    np.testing.assert_allclose(values[:, -1], plain_log_likelihoods(directory, few_texts), atol=1e-3, rtol=0)
    assert values.shape[1] == len(engine.readout.blocks) + 1 == engine.model.config.num_hidden_layers + 1


def test_half_precision_and_quantized_layers(make_model, texts):
    directory = make_model(hidden_size=64)
    exact, _ = layers_of(directory, texts)
    half, _ = layers_of(directory, texts, dtype="bfloat16")
    assert 0 < np.abs(half - exact).mean() < 2


def test_windows_add_up_at_every_layer(make_model, texts):
    directory = make_model(max_position_embeddings=40)
    loaded = load(resolve(ModelRef(str(directory))))
    engine = Engine(loaded, device="cpu", layers=True)
    found = list(engine.score(tokenize(loaded.tokenizer, texts), range(len(texts)), long_texts="window"))
    plain = list(
        Engine(loaded, device="cpu").score(tokenize(loaded.tokenizer, texts), range(len(texts)), long_texts="window")
    )
    by_text = {int(t): v for part in plain for t, v in zip(part.text, part.log_likelihood, strict=True)}
    for part in found:
        np.testing.assert_allclose(part.layers[:, -1], [by_text[int(t)] for t in part.text], atol=1e-3)


class Scaled(torch.nn.Module):
    """Blocks, then a scale that is no module, then the output embedding."""

    def __init__(self, scale):
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 4)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(2))
        self.norm, self.head, self.scale = torch.nn.LayerNorm(4), torch.nn.Linear(4, 7), scale

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        hidden = self.embedding(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.norm(hidden) * self.scale


def test_a_model_that_the_lens_does_not_fit_is_refused():
    ids = torch.tensor([[1, 2, 3]])
    model = Scaled(1.0)
    assert find_readout(model, lambda: model(ids), "m").tail == (model.norm,)
    other = Scaled(0.5)
    with pytest.raises(KlscaleError, match=r"does not fit m\.\nBetween its last block and its output embedding"):
        find_readout(other, lambda: other(ids), "m")
    flat = torch.nn.Sequential(torch.nn.Embedding(7, 4))
    with pytest.raises(KlscaleError, match="no stack of blocks"):
        find_readout(flat, lambda: flat(ids), "m")


def test_a_lens_that_is_wrong_is_found_out(make_model, texts, monkeypatch):
    """Were the readout not the way that the model goes, its last layer would not be the model."""
    from klscale.sources.transformers import engine

    def without_norm(*arguments):
        found = find_readout(*arguments)
        return type(found)(found.blocks, ())

    monkeypatch.setattr(engine, "find_readout", without_norm)
    with pytest.raises(KlscaleError, match=r"off by .* nats a text from the model's own values"):
        layers_of(make_model(), texts)


@pytest.fixture
def study(make_model, texts, tmp_path):
    """Two models in a store, the first one scored at its layers."""
    first, second = make_model("first"), make_model("second", seed=1)
    store = Store(tmp_path / "store")
    assert [o.status for o in score([str(first)], texts, store, layers=True)] == ["scored"]
    assert [o.status for o in score([str(second)], texts, store)] == ["scored"]
    return first, second, store


def test_layers_are_kept_with_the_vector(study, texts):
    first, second, store = study
    assert [o.status for o in score([str(first)], texts, store, layers=True)] == ["present"]
    assert [o.status for o in score([str(first), str(second)], texts, store)] == ["present"] * 2
    plain, layered = store.vectors(texts), store.vectors(texts, layers=True)
    assert plain.names == (str(first), str(second))
    assert layered.names == (str(first), *(f"{first}#{n}" for n in range(3)), str(second))
    assert layered.attributes["layer"].tolist() == [None, 0, 1, 2, None]
    np.testing.assert_array_equal(layered.log_likelihood[3], plain.log_likelihood[0])
    np.testing.assert_allclose(
        layered.log_likelihood[1:4].T, plain_layers(first, texts, "gpt_neox.final_layer_norm"), atol=1e-3
    )
    (entry, _) = store.entries(texts.id)
    frame = pd.read_parquet(entry.path)
    assert np.stack(frame["layer_log_likelihood"]).shape == (len(texts), 3)
    assert not [problem for _, problem in store.check() if problem]
    assert [o.status for o in score([str(second)], texts, store, layers=True)] == ["scored"], "the file is replaced"
    assert len(store.entries(texts.id)) == 2
    with pytest.raises(InputError, match="is a layer"):
        raise score([f"{first}#1"], texts, store)[0].error


def test_unfinished_layers_are_taken_up_again(make_model, texts, tmp_path, monkeypatch):
    from klscale.sweep import score as sweeps

    directory, store = make_model(), Store(tmp_path / "store")
    monkeypatch.setattr(sweeps, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(sweeps, "keep_noise_floor", lambda *_, **__: None)  # it reads some texts again
    scored = []

    def interrupted(self, tokens, which, **options):
        for part in plain(self, tokens, which, **options):
            scored.append(0 if self.shuffled else len(part))  # readings for the noise floor aside
            yield part
            if sum(scored) == len(part):
                raise KeyboardInterrupt

    plain = Engine.score
    monkeypatch.setattr(Engine, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        score([str(directory)], texts, store, layers=True, batch_tokens=400)
    kept = scored[0]
    score([str(directory)], texts, store, layers=True, batch_tokens=400)
    assert sum(scored) == len(texts)
    assert kept < len(texts)
    expected = plain_layers(directory, texts, "gpt_neox.final_layer_norm")
    np.testing.assert_allclose(store.vectors(texts, layers=True).log_likelihood[1:].T, expected, atol=1e-3)


def test_kl_across_layers_is_that_of_the_plain_values(study, texts):
    first, _, store = study
    rows = lens.layers(store.vectors(texts, layers=True))[str(first)]
    values = plain_layers(first, texts, "gpt_neox.final_layer_norm").T
    unit = 2 * texts.mean_bytes * np.log(2)
    for n, row in enumerate(rows):
        assert row.layer == n
        assert row.to_output.value == pytest.approx(np.var(values[n] - values[-1]) / unit, rel=1e-4, abs=1e-9)
        assert row.bits_per_byte.value == pytest.approx(-values[n].sum() / np.log(2) / texts.bytes.sum(), rel=1e-6)
        if n:
            assert row.from_previous.value == pytest.approx(np.var(values[n] - values[n - 1]) / unit, rel=1e-4)
    assert rows[0].from_previous is None
    with pytest.raises(InputError, match="scored at its layers"):
        lens.layers(store.vectors(texts))


def test_the_clip_is_judged_layer_by_layer(study, texts):
    first, _, store = study
    vectors = store.vectors(texts, layers=True)
    ends = vectors.log_likelihood[[1, 3]].min(axis=1)
    clip = float(np.quantile(vectors.log_likelihood[3], 0.03))
    assert ends[0] != ends[1]
    store.put_texts(texts.with_clip(clip))
    rows = lens.layers(store.vectors(texts.with_clip(clip), layers=True))[str(first)]
    for row in rows:
        moved = max((vectors.log_likelihood[1 + n] < clip).mean() for n in (row.layer, 2))
        assert row.to_output.clipped == pytest.approx(moved)
        assert row.to_output.uses_clip == (moved <= 0.05)


def test_the_map_keeps_distances(study, texts):
    vectors = study[2].vectors(texts, layers=True)
    found = maps.pca(vectors, len(vectors))
    square = ((found.points[:, None] - found.points[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(square, vectors.kl().value, atol=1e-9 * square.max())
    assert found.share.sum() == pytest.approx(1)
    assert (np.diff(found.share) <= 0).all()


def test_the_command_and_its_picture(run, make_model, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    a, b = make_model("a"), make_model("b", seed=1)
    shown = run("layers", a, b, "--texts", "mine.jsonl", "--out", "layers.svg")
    assert "embedding" in shown.stdout
    picture = (tmp_path / "layers.svg").read_text()
    for word in ("from the layer before", "to the output", "bits/byte"):
        assert word in picture
    records = json.loads(run("layers", a, "--json").stdout)
    assert [record["layer"] for record in records] == [0, 1, 2]
    assert records[0]["kl_from_previous"] is None
    assert records[2]["kl_to_output"]["kl"] == 0
    run("layers", a, "--out", "pairs.csv")
    frame = pd.read_csv(tmp_path / "pairs.csv")
    assert len(frame) == 3
    assert frame["a"][0] == f"{a}#0"
    other = make_model("other", seed=2)
    assert "unknown ending '.jpg'" in run("layers", other, "--out", "layers.jpg", status=2).stderr
    assert "other" not in run("ls").stdout, "nothing is scored for a picture that cannot be made"
    assert "klscale layers" in run("compare", f"{a}#0", f"{a}#1", status=2).stderr


def imported(tmp_path, run, names):
    """A store with columns of these names, each nearer to the last; and the values (K, N)."""
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(len(names), 200)) * np.linspace(60, 6, len(names))[:, None]
    L = np.concatenate([-400 - np.abs(noise[:-1]), -400 - np.abs(noise[-1:])])
    columns = {"text_id": range(200), "bytes": np.full(200, 300), **dict(zip(names, L, strict=True))}
    pd.DataFrame(columns).to_csv(tmp_path / "layers.csv", index=False)
    run("import", "layers.csv", "--id", "text_id")
    return dict(zip(names, L, strict=True))


def test_the_output_of_imported_layers_is_the_model(tmp_path, run):
    """In the table, in files of pairs and of the picture, in the scale and in the report; not its last `#` layer."""
    rows = imported(tmp_path, run, ["org/other", "org/net#0", "org/net#1", "org/net#2", "org/net"])

    def direct(a, b):
        return pytest.approx(np.var(rows[a] - rows[b]) / (2 * 300 * np.log(2)))

    records = json.loads(run("layers", "org/net", "--json").stdout)
    assert [record["layer"] for record in records] == [0, 1, 2, 3]
    assert records[0]["kl_to_output"]["kl"] == direct("org/net#0", "org/net")
    assert records[3]["kl_from_previous"]["kl"] == direct("org/net#2", "org/net")
    run("layers", "org/net", "--out", "pairs.csv")
    pairs = pd.read_csv(tmp_path / "pairs.csv").set_index(["a", "b"])["kl"]
    assert len(pairs) == 6
    assert pairs["org/net#0", "org/net#3"] == direct("org/net#0", "org/net")
    layer, *_ = json.loads(run("scale", "--json").stdout)["measured"]
    assert layer["setting"] == "layer"
    assert [(pair["a"], pair["b"]) for pair in layer["pairs"]] == [
        (f"org/net#{n}", f"org/net#{n + 1}") for n in range(3)
    ]
    store = Store(tmp_path / "klscale-store")
    contents = read_contents(store, store.resolve_texts("layers"))
    assert [row.layer for row in contents.found_layers["org/net"]] == [0, 1, 2, 3]
    error = run("layers", "org/net#2", status=2).stderr
    assert "org/net#2 is one layer" in error


def test_imported_layers_have_their_own_numbers(tmp_path, run):
    imported(tmp_path, run, ["net#1", "net#2", "net#5", "net"])
    records = json.loads(run("layers", "net", "--json").stdout)
    assert [record["layer"] for record in records] == [1, 2, 5, 6]
    assert [record["kl_from_previous"] is None for record in records] == [True, False, True, False]


def test_pictures_of_one_model(study, texts):
    figure = pictures.layer_threads(study[2].vectors(texts, layers=True).subset([f"{study[0]}#{n}" for n in range(3)]))
    assert len(figure.axes) == 2


def test_layers_of_a_model_larger_than_memory(make_model, few_texts, monkeypatch):
    """Layers that are read from disk by the forward pass, the norm among them, give the same values."""
    from klscale.sources.transformers import placement

    directory = make_model(num_hidden_layers=6)
    expected, _ = layers_of(directory, few_texts)
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    monkeypatch.setattr(placement, "available_memory", lambda device: int(0.8 * size))
    values, engine = layers_of(directory, few_texts)
    assert engine.loaded.offload is not None
    np.testing.assert_allclose(values, expected, atol=1e-3)


@pytest.mark.slow
def test_layers_are_not_lost(make_model, texts, tmp_path):
    """Not when the model is scored again, nor by another process that scores it without them."""
    directory, store = make_model(), Store(tmp_path / "store")
    score([str(directory)], texts, store, layers=True)
    assert [o.status for o in score([str(directory)], texts, store, rescore=True)] == ["scored"]
    (entry,) = store.entries(texts.id)
    assert entry.n_layers == 3

    other = Store(tmp_path / "other")
    plain, read = Engine.score, []

    def overtaken(self, *arguments, **options):
        """Before this process is done, another has read the layers too."""
        yield from plain(self, *arguments, **options)
        if not self.layers and not read:
            read.append(True)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("klscale.store.claims.claims", lambda *_: {})
                score([str(directory)], texts, Store(tmp_path / "other"), layers=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "score", overtaken)
        (outcome,) = score([str(directory)], texts, other)
    assert outcome.entry.n_layers == 3
    assert [entry.n_layers for entry in other.entries(texts.id)] == [3]


def test_names_of_the_same_files_find_their_layers(make_model, texts, tmp_path, monkeypatch):
    make_model("m")
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    score(["m"], texts, store)
    score(["./m"], texts, store, layers=True)
    (outcome,) = score(["m"], texts, store, layers=True)
    assert (outcome.status, outcome.entry.n_layers) == ("present", 3)


def test_threads_of_different_conventions_have_tables_but_no_common_picture(run, make_model, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    short, long = make_model("short", max_position_embeddings=40), make_model("long", seed=1)
    arguments = ("layers", short, long, "--texts", "mine.jsonl", "--long-texts", "window")
    assert run(*arguments).stdout.count("embedding") == 2
    refused = run(*arguments, "--out", "both.png", status=2)
    assert refused.stdout.count("embedding") == 2
    assert "different conventions" in refused.stderr


def test_a_model_whose_window_is_too_short_for_every_text(run, make_model, tmp_path):
    write_texts(tmp_path / "mine.jsonl")
    model = make_model(max_position_embeddings=8)
    refused = run("score", model, "--texts", "mine.jsonl", "--long-texts", "skip", status=2)
    assert "Every text is longer than the window" in refused.stderr
    assert not list((tmp_path / "klscale-store").rglob("*.parquet"))


def test_the_layer_that_is_not_finite_is_named(make_model, texts, monkeypatch):
    plain = Engine._score_batch

    def damaged(self, tokens, batch):
        read = plain(self, tokens, batch)
        read.log_likelihood[:, 1] = np.nan
        return read

    monkeypatch.setattr(Engine, "_score_batch", damaged)
    with pytest.raises(KlscaleError, match=r"nan for text \d+ at layer 1"):
        layers_of(make_model(), texts)


@pytest.mark.parametrize("form", ["apart", "repeated", "missing"])
def test_imported_layers_end_in_the_output(tmp_path, form):
    """`NAME` is the output where the last `#` layer does not repeat it; without it the last `#` layer is."""
    generator = np.random.default_rng(0)
    rows = -200 + np.cumsum(generator.normal(0, 5, (4, 50)), axis=0)
    columns = {f"m#{n}": row for n, row in enumerate(rows if form == "missing" else rows[:3])}
    columns |= {"repeated": {"m#3": rows[3], "m": rows[3]}, "apart": {"m": rows[3]}, "missing": {}}[form]
    table = pd.DataFrame(columns | {"bytes": 100})
    table.to_csv(tmp_path / "layers.csv", index=False)
    store = Store(tmp_path / "store")
    store.import_vectors(read_log_likelihoods(tmp_path / "layers.csv"), "layers.csv")
    (found,) = layers_verb(["m"], store=store).layers.values()
    assert len(found) == 4
    for n, layer in enumerate(found):
        assert layer.to_output.value == pytest.approx(np.var(rows[n] - rows[3]) / 200 / np.log(2))
        if n:
            assert layer.from_previous.value == pytest.approx(np.var(rows[n] - rows[n - 1]) / 200 / np.log(2))
