"""KL inside training: the numbers are those of the saved checkpoints, and the run does not notice."""

from __future__ import annotations

import itertools
import logging
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

import klscale
from conftest import ROOT, SMALL, byte_tokenizer, write_texts
from klscale.errors import InputError, KlscaleError
from klscale.inputs.texts import TextSet
from klscale.science.kl import bits_per_byte, kl
from klscale.sources.transformers.engine import Engine
from klscale.store.files import Files
from klscale.store.store import Store
from klscale.training import callbacks
from klscale.training.callbacks import TrainingWatch, TrajectoryCallback
from klscale.training.live import untouched
from klscale.vectors.vectors import CONVENTION
from test_spans import naive_kl, naive_texts

STEPS = 24


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order, so that runs can be compared to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def texts():
    generator = np.random.default_rng(1)
    words = ["tree", "grün", "日本", "house", "and", "the", "of\n", "runs"]
    made = ["a " + " ".join(generator.choice(words, size=generator.integers(3, 12))) for _ in range(90)]
    return TextSet.from_texts("words", made)  # the first character is one byte, which `by_spans` takes as given


def new_model(seed=0, **changes):
    """With dropout, so that one random number drawn in between changes all that follows."""
    torch.manual_seed(seed)
    settings = {**SMALL, "max_position_embeddings": 128, "hidden_dropout": 0.1, "attention_dropout": 0.1, **changes}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**settings))


def new_llama(**changes):
    torch.manual_seed(0)
    settings = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 128, "attention_dropout": 0.1, **changes}
    return LlamaForCausalLM(LlamaConfig(**settings))


def batches(n=40):
    generator = torch.Generator().manual_seed(7)
    rows = torch.randint(0, 40, (n, 24), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def train(directory, *given, model=None, resume=None, tokenizer=None, **arguments):
    settings = {
        "max_steps": STEPS, "logging_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 5e-3, "seed": 3,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True, **arguments,
    }  # fmt: skip
    trainer = Trainer(
        model=model or new_model(),
        args=TrainingArguments(output_dir=str(directory), **settings),
        train_dataset=batches(),
        data_collator=default_data_collator,
        processing_class=tokenizer or byte_tokenizer(),
        callbacks=list(given),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def curve(trainer):
    return [
        (entry["step"], entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry
    ]


def measured(trainer):
    return {entry["step"]: entry for entry in trainer.state.log_history if "kl/bits_per_byte" in entry}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_to_the_bit(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


# ---------------------------------------------------------------------------------------------------- untouched


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bf16": True, "gradient_accumulation_steps": 2},
        {"logging_steps": 5, "gradient_checkpointing": True},
    ],
    ids=["plain", "autocast and accumulation", "gradient checkpointing"],
)
def test_the_run_is_the_same_to_the_bit(arguments, tmp_path, texts):
    without = train(tmp_path / "without", **arguments)
    callback = TrajectoryCallback(texts, every=4, store=tmp_path / "store", patience=100, threshold=1e-9)
    with_it = train(tmp_path / "with", callback, **arguments)
    assert list(measured(with_it)) == [0, 4, 8, 12, 16, 20, 24]
    assert curve(with_it) == curve(without)
    assert len(curve(without)) == STEPS // arguments.get("logging_steps", 1)
    assert_equal_to_the_bit(weights(with_it.model), weights(without.model))
    train_loss = [trainer.state.log_history[-1]["train_loss"] for trainer in (with_it, without)]
    assert train_loss[0] == train_loss[1]


def own_loop(model, watch=None, *, wrap=lambda model: model, steps=STEPS):
    """Dropout, a draw of every kind of random number, gradients accumulated over the step that is measured."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data, losses, wrapped, found = batches(), [], wrap(model), {}
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    wrapped.train()
    model.gpt_neox.layers[0].eval()  # frozen, and without dropout
    for step in range(steps):
        for _ in range(2):
            row = data[(random.randrange(40) + int(np.random.randint(40))) % 40]["input_ids"][None]  # noqa: NPY002
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 2 == 0):
                loss = wrapped(input_ids=row, labels=row).loss
            loss.backward()
            if watch is not None and (values := watch(wrapped, step)) is not None:
                found[step] = values
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, found


def distributed_on_one_process(model):
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda model: model, distributed_on_one_process, nn.DataParallel])
def test_an_own_loop_is_the_same_to_the_bit(wrap, tmp_path, texts, one_process):
    """Watched between two backward passes of one step: gradients are there, and are kept."""
    plain, watched = new_model(), new_model()
    losses, _ = own_loop(plain, wrap=wrap)
    watch = TrainingWatch(texts, byte_tokenizer(), every=5, store=tmp_path / "store", name="loop")
    same, found = own_loop(watched, watch, wrap=wrap)
    assert list(found) == [0, 5, 10, 15, 20]
    assert same == losses
    assert_equal_to_the_bit(weights(watched), weights(plain))


def random_state():
    kind, numbers, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), kind, numbers.tolist(), rest


def test_modes_buffers_attributes_and_gradients_come_back():
    """Each submodule's own mode; what a forward pass leaves behind in a module; nothing made in inference mode."""
    model = new_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    model.train()
    model.model.layers[1].eval()
    model(input_ids=torch.zeros(1, 200, dtype=torch.long)).logits.sum().backward()  # stretches the rotary embedding
    modes = [module.training for module in model.modules()]
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    rotary = model.model.rotary_emb
    stretched, longest, state = rotary.inv_freq, int(rotary.max_seq_len_cached), random_state()
    with untouched(model), torch.inference_mode():
        assert not any(module.training for module in model.modules())
        model(input_ids=torch.zeros(1, 50, dtype=torch.long))
        assert rotary.inv_freq is not stretched
        model.new_attribute = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
    assert [module.training for module in model.modules()] == modes
    assert rotary.inv_freq is stretched
    assert int(rotary.max_seq_len_cached) == longest == 200
    assert not hasattr(model, "new_attribute")
    assert random_state() == state
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, gradients[name])
    with pytest.raises(RuntimeError, match="within"), untouched(model):
        raise RuntimeError("within")
    assert [module.training for module in model.modules()] == modes


def test_autocast_around_a_measurement_changes_nothing(texts):
    model = new_model()
    expected = TrainingWatch(texts, byte_tokenizer(), every=1)(model, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TrainingWatch(texts, byte_tokenizer(), every=1)(model, 0) == expected
        assert model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.dtype == torch.bfloat16


def test_compiled_models_are_scored_as_they_are(texts):
    """Nothing is compiled anew for a measurement, and the values are those of the model itself."""
    compiled = []

    def backend(graph, _inputs):
        compiled.append(graph)
        return graph.forward

    model = new_model()
    (expected,) = [TrainingWatch(texts, byte_tokenizer(), every=1)(model, 0)]
    for wrapped in (torch.compile(model, backend=backend), model):
        model.compile(backend=backend)  # the last of the two is compiled in place
        assert TrainingWatch(texts, byte_tokenizer(), every=1)(wrapped, 0) == expected
    assert not compiled


# ------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.slow
def test_values_are_those_of_the_saved_checkpoints(tmp_path, texts):
    """Against every checkpoint loaded and scored on its own, one text at a time."""
    reference = tmp_path / "reference"
    new_model(9).save_pretrained(reference)
    byte_tokenizer().save_pretrained(reference)
    directory, start = tmp_path / "run", tmp_path / "run" / "checkpoint-0"
    model = new_model()
    model.save_pretrained(start)
    byte_tokenizer().save_pretrained(start)
    callback = TrajectoryCallback(texts, every=8, reference=str(reference), store=tmp_path / "store", log_all=True)
    trainer = train(directory, callback, model=model, save_strategy="steps", save_steps=8, bf16=True)
    places = {step: directory / f"checkpoint-{step}" for step in (0, 8, 16, 24)} | {"reference": reference}
    values = {name: byte_by_byte(AutoModelForCausalLM.from_pretrained(place), texts) for name, place in places.items()}
    rows = {name: np.array([text.sum() for text in found]) for name, found in values.items()}
    found = measured(trainer)
    assert list(found) == [0, 8, 16, 24]
    for step, pairs in {
        0: {"to_reference": "reference"},
        8: {"from_previous": 0, "from_start": 0, "to_reference": "reference"},
        24: {"from_previous": 16, "from_start": 0, "to_reference": "reference"},
    }.items():
        assert sum(key.startswith("kl/") for key in found[step]) == 2 + 2 * len(pairs)
        for name, other in pairs.items():
            expected, error = by_spans(values[step], values[other], texts)
            assert found[step][f"kl/{name}"] == pytest.approx(expected, rel=1e-3, abs=1e-7)
            assert found[step][f"kl/{name}_standard_error"] == pytest.approx(error, rel=1e-2)
        own = bits_per_byte(rows[step], texts.bytes)
        assert found[step]["kl/bits_per_byte"] == pytest.approx(own.value, rel=1e-6)
        assert found[step]["kl/bits_per_byte_standard_error"] == pytest.approx(own.standard_error, rel=1e-4)
    assert found[24]["kl/from_start"] > 1e-3
    store = Store(tmp_path / "store")
    vectors = store.vectors(texts)
    assert set(vectors.names) == {f"{directory}/checkpoint-{step}" for step in (0, 8, 16, 24)}
    for step in (0, 8, 16, 24):
        row = vectors.log_likelihood[vectors.position(f"{directory}/checkpoint-{step}")]
        np.testing.assert_allclose(row, rows[step], atol=1e-3, rtol=0)
    attributes = vectors.attributes.loc[f"{directory}/checkpoint-16"]
    assert (attributes["step"], attributes["seed"], attributes["warmup"]) == (16, 3, 0)
    assert attributes["parameters"] == model.num_parameters()
    assert (attributes["dtype"], attributes["convention"]) == ("float32", CONVENTION)
    assert not [problem for _, problem in store.check() if problem]


@pytest.mark.slow
def test_the_exponent_is_the_published_fit(texts):
    """Ordinary least squares of ln KL on ln lag over the last 10 measurements; its standard error is a bootstrap's."""
    model, rows, steps = new_model(), [], []
    watch = TrainingWatch(texts, byte_tokenizer(), every=1)
    moves = torch.Generator().manual_seed(0)
    for step in range(0, 36, 3):
        rows.append(one_by_one(model, texts))
        steps.append(step)
        values = watch(model, step)
        assert ("kl/exponent" in values) == (len(rows) > 10)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=moves)
    lags = np.log(np.array(steps[2:]) - steps[1])

    def slope(which):
        distances = [kl(rows[1][which], row[which], texts.bytes[which]).value for row in rows[2:]]
        return np.polyfit(lags, np.log(distances), 1)[0]

    everything, generator = np.arange(len(texts)), np.random.default_rng(1)
    assert values["kl/exponent"] == pytest.approx(slope(everything), rel=1e-3)
    resampled = [slope(generator.choice(everything, len(everything))) for _ in range(300)]
    assert values["kl/exponent_standard_error"] == pytest.approx(np.std(resampled), rel=0.2)


def byte_by_byte(model, texts):
    """Log-likelihood of each byte but the first of each text, one text at a time from full logits in float64."""
    model.eval()
    tokenizer, values = byte_tokenizer(), []
    with torch.no_grad():
        for text in texts.texts:
            ids = torch.tensor(tokenizer(text)["input_ids"])
            found = model(ids[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
            values.append(found.gather(1, ids[1:, None])[:, 0].numpy())
    model.train()
    return values


def one_by_one(model, texts):
    """Log-likelihoods of texts."""
    return np.array([values.sum() for values in byte_by_byte(model, texts)])


def by_spans(a, b, texts):
    """KL and its standard error by a plain loop over the spans of `byte_by_byte`."""
    spans, ends = texts.cuts.spans, np.cumsum(texts.bytes)
    first = np.concatenate([np.cumsum(spans.bytes)[start:stop] - spans.bytes[start:stop] - (ends[s] - texts.bytes[s])
                            for s, (start, stop) in enumerate(itertools.pairwise(spans.starts))])  # fmt: skip
    rows = [[], []]
    for row, values in zip(rows, (a, b), strict=True):
        for s, (start, stop) in enumerate(itertools.pairwise(spans.starts)):
            row += np.add.reduceat(np.concatenate([[0.0], values[s]]), first[start:stop]).tolist()
    given = np.ones((2, len(texts)), dtype=int)
    _, V, size, *_ = naive_texts(np.array(rows), *np.array(rows), spans, given)
    return naive_kl(V, size)


@pytest.mark.slow
def test_an_adapted_output_head_is_scored_with_its_adapter(texts):
    """The weight of an adapter's layer is not all that it computes; gradient checkpointing hooks its inputs."""
    peft = pytest.importorskip("peft")
    model = new_model()
    (head,) = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=[head]))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    watch, before = TrainingWatch(texts, byte_tokenizer(), every=1), byte_by_byte(model, texts)
    watch(model, 0)
    for step, size in ((1, 1e-5), (2, 1.0)):  # hardly anything; and what nobody could overlook
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=size)
        values, after = watch(model, step), byte_by_byte(model, texts)
        assert values["kl/from_previous"] == pytest.approx(by_spans(before, after, texts)[0], rel=0.05)
        own = bits_per_byte(np.array([text.sum() for text in after]), texts.bytes)
        assert values["kl/bits_per_byte"] == pytest.approx(own.value, rel=1e-6)
        before = after


def test_what_numbers_do_not_mean_is_said_once(texts, caplog):
    """A model with random weights is far from the texts: distances, not KL."""
    model, watch = new_model(), TrainingWatch(texts, byte_tokenizer(), every=1)
    for step in range(4):
        watch(model, step)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.1)
    said = [record.message for record in caplog.records if "kl/from_start is out of range" in record.message]
    assert len(said) == 1


# ----------------------------------------------------------------------------------------------- when and what


def test_the_log_schedule():
    watch = TrainingWatch("pocket")
    watch._asked = 0
    due = [step for step in range(1, 10_000) if watch._is_due(step)]
    assert due[:16] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 19, 22, 26]
    ratios = np.array(due[12:]) / np.array(due[11:-1])
    assert ratios.min() > 1.14
    assert ratios.max() <= 1.2


def test_the_first_call_the_schedule_and_the_last(tmp_path, texts):
    """A resumed loop starts where it is; `measure` does not ask the schedule; no step is measured twice."""
    model, watch = new_model(), TrainingWatch(texts, byte_tokenizer(), every=10)
    asked = {step: watch(model, step) is not None for step in (3, 4, 10, 10, 9, 15, 20)}
    assert asked == {3: True, 4: False, 10: False, 9: False, 15: False, 20: True}
    assert watch.measure(model, 23) is not None
    assert watch.measure(model, 23) is None


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by a millisecond with each token that is scored."""
    now = [0.0]
    score = Engine.score

    def slow(self, tokens, texts, **options):
        for scores in score(self, tokens, texts, **options):
            now[0] += 1e-3 * scores.n_tokens.sum()
            yield scores

    monkeypatch.setattr(Engine, "score", slow)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_the_budget_chooses_the_texts(clock, caplog):
    """As many as fit, never fewer than 64, all where there is time; those of a smaller budget among those of a larger;
    none beyond the window."""
    generator = np.random.default_rng(0)
    made = ["x" * int(n) for n in generator.integers(5, 60, 300)]
    made[7] = made[11] = "y" * 129
    texts = TextSet.from_texts("lengths", made)
    chosen = {}
    for budget in (0.1, 4.0, 100.0):
        watch = TrainingWatch(texts, byte_tokenizer(), budget_seconds=budget)
        watch(new_model(), 0)
        chosen[budget] = set(watch._sample.subset.tolist())
        before = clock[0]
        watch.measure(new_model(), 1)
        assert clock[0] - before <= max(budget, 64 * 60e-3)
    assert len(chosen[0.1]) == 64
    assert chosen[100.0] == set(range(300)) - {7, 11}
    assert sum(len(made[s]) for s in chosen[4.0]) > 3900
    assert chosen[0.1] < chosen[4.0] < chosen[100.0]
    assert "298 of 300 texts of lengths (2 are longer than its window of 128 tokens)" in caplog.text


def test_a_run_that_has_settled_is_stopped(tmp_path, texts):
    """Warm-up is no rest; with a learning rate that falls to nothing the last measurements are alike."""
    callback = TrajectoryCallback(texts, every=2, patience=3, threshold=2e-4)
    arguments = {"max_steps": 200, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 6}

    class Brake(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **_):
            for group in optimizer.param_groups if state.global_step >= 12 else ():
                group["lr"] = 0.0

        def on_step_begin(self, args, state, control, optimizer=None, **_):
            self.on_step_end(args, state, control, optimizer)

    trainer = train(tmp_path / "run", callback, Brake(), **arguments)
    found = measured(trainer)
    assert callback.settled
    assert trainer.state.global_step == max(found) == 18, "3 measurements after the brake"
    assert found[18]["kl/from_start"] > 2e-4 > found[18]["kl/from_previous"]


def test_a_run_that_has_not_moved_has_not_settled(texts):
    model, watch = new_model(), TrainingWatch(texts, byte_tokenizer(), every=1, patience=2, threshold=1e-3)
    for step in range(4):
        watch(model, step)
        assert not watch.settled
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
    settled = [bool(watch(model, step)) and watch.settled for step in range(4, 8)]
    assert settled == [False, False, True, True]


def test_reporting_callbacks_see_the_values(tmp_path, texts):
    """Whether they come before or after, at the step of the measurement, and no more often of the loss than without."""

    class Reporter(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **_):
            self.seen.append((state.global_step, dict(logs)))

    before, after = Reporter(), type("Other", (Reporter,), {})()
    train(tmp_path / "run", before, TrajectoryCallback(texts, every=7), after, logging_steps=7, max_steps=15)
    assert before.seen == after.seen
    assert [step for step, logs in before.seen if "kl/bits_per_byte" in logs] == [0, 7, 14, 15]
    assert [step for step, logs in before.seen if "loss" in logs] == [7, 14]
    assert all(isinstance(value, float | int) for _, logs in before.seen for value in logs.values())
    assert before.seen[1][1].keys() == {"kl/from_previous", "kl/from_start", "kl/bits_per_byte", "epoch"}


# --------------------------------------------------------------------------------------------------------- store


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_store(tmp_path, texts, clock):
    """Subset, start and previous vector are those of the first part, though there would be time for other texts."""
    store, directory = Store(tmp_path / "store"), tmp_path / "run"
    saving = {"save_strategy": "steps", "save_steps": 8}
    first = train(
        directory, TrajectoryCallback(texts, every=4, store=store, budget_seconds=2.5), model=new_llama(), **saving
    )
    first_values, skipped = measured(first), {len(entry.metadata["skipped"]) for entry in store.entries(texts.id)}
    assert len(skipped) == 1
    assert skipped.pop() > 5
    again = TrajectoryCallback(texts, every=4, store=store, budget_seconds=1000)
    second = train(directory, again, model=new_llama(), resume=str(directory / "checkpoint-8"), **saving)
    second_values = measured(second)
    for step in (8, 12, 16, 20, 24):
        assert second_values[step] == first_values[step], "the same run, resumed"
    assert len(store.entries(texts.id)) == 7, "each step once"


def test_another_run_of_the_same_name_is_refused(tmp_path, texts):
    store, tokenizer = Store(tmp_path / "store"), byte_tokenizer()
    watch = TrainingWatch(texts, tokenizer, every=1, store=store, name="a", attributes={"family": "mine"})
    watch(new_model(), 0)
    with pytest.raises(InputError, match=r"(?s)a run named 'a' already.*Give another name="):
        TrainingWatch(texts, tokenizer, store=store, name="a")(new_model(), 0)
    TrainingWatch(texts, tokenizer, store=store, name="b", attributes={"family": "mine"})(new_model(1), 0)
    assert list(store.vectors(texts).attributes["family"]) == ["mine", "mine"]
    assert store.vectors(texts).kl()["a/checkpoint-0", "b/checkpoint-0"].value > 0


@pytest.mark.parametrize("identity", ["live:x:y", "live:", "live:x:" + 5000 * "9", "live"])
def test_a_vector_that_only_looks_like_one_of_a_run_does_not_stop_another(tmp_path, texts, identity):
    store, tokenizer = Store(tmp_path / "store"), byte_tokenizer()
    TrainingWatch(texts, tokenizer, every=1, store=store, name="a")(new_model(), 0)
    (entry,) = store.entries(texts.id)
    store.write(texts, store.scores(entry), {**entry.metadata, "identity": identity, "ref": "b/checkpoint-0"})
    TrainingWatch(texts, tokenizer, every=1, store=store, name="c")(new_model(1), 0)
    assert len(store.entries(texts.id)) == 3


def test_the_reference_may_be_a_vector_of_the_store(tmp_path, texts):
    """One that is there only as a vector: the checkpoint of another run that was never saved."""
    store, tokenizer = Store(tmp_path / "store"), byte_tokenizer()
    TrainingWatch(texts, tokenizer, store=store, name="a")(new_model(1), 5)
    watch = TrainingWatch(texts, tokenizer, store=store, name="b", reference=f"{tmp_path}/a/checkpoint-5")
    with pytest.raises(KlscaleError, match="checkpoint-5"):
        watch(new_model(), 0)
    TrainingWatch(texts, tokenizer, store=store, name=f"{tmp_path}/a")(new_model(1), 5)
    values = TrainingWatch(texts, tokenizer, store=store, name="c", reference=f"{tmp_path}/a/checkpoint-5")(
        new_model(), 0
    )
    expected, _ = by_spans(byte_by_byte(new_model(), texts), byte_by_byte(new_model(1), texts), texts)
    assert values["kl/to_reference"] == pytest.approx(expected, rel=1e-4)


# -------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
def test_a_failure_later_is_said_once_and_training_goes_on(tmp_path, texts, monkeypatch, caplog):
    without = train(tmp_path / "without")
    callback, keep = TrajectoryCallback(texts, every=4, store=tmp_path / "store"), TrajectoryCallback._measure

    def fails_twice(self, model, step):
        if step in (8, 12):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return keep(self, model, step)

    monkeypatch.setattr(TrajectoryCallback, "_measure", fails_twice)
    with caplog.at_level(logging.WARNING, "klscale"):
        trainer = train(tmp_path / "with", callback)
    assert curve(trainer) == curve(without)
    assert list(measured(trainer)) == [0, 4, 16, 20, 24]
    assert caplog.text.count("training continues") == 1
    assert "The measurement at step 8 failed" in caplog.text
    assert "CUDA out of memory." in caplog.text


def test_a_store_that_cannot_be_written_costs_the_vectors_only(tmp_path, texts, monkeypatch, caplog):
    store = Store(tmp_path / "store")
    watch = TrainingWatch(texts, byte_tokenizer(), every=1, store=store, name="run")
    watch(new_model(), 0)
    monkeypatch.setattr(Files, "write", lambda self, path, data: (_ for _ in ()).throw(OSError("disk full")))
    assert "kl/from_start" in watch(new_model(1), 1)
    assert "kl/from_start" in watch(new_model(2), 2)
    assert caplog.text.count("disk full") == 1
    with pytest.raises(OSError, match="disk full"):
        TrainingWatch(texts, byte_tokenizer(), store=store, name="other")(new_model(), 0)


def sharded_by_zero(model):
    for parameter in model.parameters():
        parameter.ds_id = 1
    return model


def sharded_by_fsdp(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def in_double_precision(model):
    return model.double()


def plain_module(_model):
    return nn.Linear(2, 2)


def rescaling(model):
    model.config.rescale_every = 6
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sharded_by_zero, r"ZeRO-3 has sharded.*klscale score"),
        (sharded_by_fsdp, r"FSDP or tensor parallelism has sharded"),
        (in_double_precision, r"float64 cannot be scored"),
        (plain_module, r"Linear is not a model of transformers"),
        (rescaling, r"rescale_every = 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_reason(change, message, texts, one_process):
    with pytest.raises(KlscaleError, match=r"(?s)" + message):
        TrainingWatch(texts, byte_tokenizer())(change(new_model()), 0)


def test_the_trainer_refuses_before_the_first_step(tmp_path, texts):
    model = sharded_by_zero(new_model())
    before = weights(model)
    with pytest.raises(KlscaleError, match="ZeRO-3"):
        train(tmp_path, TrajectoryCallback(texts), model=model)
    assert_equal_to_the_bit(weights(model), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0 is no schedule"),
        ({"every": "epoch"}, "every='epoch' is no schedule"),
        ({"patience": 3}, "Give both, or neither"),
        ({"patience": 3, "threshold": -1.0}, "threshold=-1.0 is not above 0"),
        ({"budget_seconds": 0}, "budget_seconds=0 is not above 0"),
        ({"reference": "gpt2+nf5"}, "unknown quantization"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(InputError, match=message):
        TrainingWatch("pocket", **arguments)


def test_what_is_missing_at_the_start(tmp_path, texts):
    with pytest.raises(InputError, match="no tokenizer"):
        TrainingWatch(texts)(new_model(), 0)
    with pytest.raises(InputError, match=r"(?s)no name.*Give name="):
        TrainingWatch(texts, byte_tokenizer(), store=tmp_path)(new_model(), 0)
    long = TextSet.from_texts("long", ["a" * 200] * 3)
    with pytest.raises(InputError, match=r"longer than the window of the model \(128 tokens\)"):
        TrainingWatch(long, byte_tokenizer())(new_model(), 0)


def test_names_are_exported_lazily():
    assert klscale.TrajectoryCallback is TrajectoryCallback
    assert klscale.TrainingWatch is TrainingWatch


def test_the_documentation_runs(tmp_path, monkeypatch):
    """The Python of docs/training.md, as it stands; the schedule and the names that it tells of."""
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "my-texts.jsonl")
    model, tokenizer = new_model(), byte_tokenizer()
    tokenizer.pad_token = "<s>"
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def train_step(model, batch):
        model(**{name: row[None] for name, row in batch.items()}).loss.backward()
        optimizer.step()

    names = {
        "model": model,
        "tokenizer": tokenizer,
        "train_step": train_step,
        "train_dataset": batches(16),
        "batches": batches(6),
    }
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert list(measured(names["trainer"])) == [0, 1, 2, 3, 4, 5, 6]
    store = Store("klscale-store")
    assert len(store.entries(store.text_sets()[0]["id"])) == 7
    logged = {key for values in measured(names["trainer"]).values() for key in values if key.startswith("kl/")}
    assert {key.removesuffix("_standard_error") for key in logged} < set(
        re.findall(r"^\| `(kl/\w+)`", page, re.MULTILINE)
    )
