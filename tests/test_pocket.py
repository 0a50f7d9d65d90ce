"""The pocket suite: its tokenizer, that training is repeatable, that interruptions and changed recipes do no harm."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from klscale.errors import InputError, KlscaleError
from klscale.progress import Progress
from klscale.studies import pocket
from klscale.studies.pocket import FULL, QUICK, Recipe, pocket_tokenizer, train_pocket_suite, train_suite

TINY = Recipe(
    sizes=(("small", 16), ("middle", 32), ("large", 48)),
    seeds=(1, 2),
    steps=6,
    interval=3,
    warmup=2,
    finetune_steps=3,
    batch=2,
    window=32,
)
RUNS = {
    "pocket-llama-middle-seed1",
    "pocket-middle-seed1",
    "pocket-middle-seed2",
    "pocket-small-seed1",
    "pocket-large-seed1",
    "pocket-middle-finetuned",
}


class Recorder(Progress):
    """Keeps what it is told; raises `error` once `limit` percent are done."""

    def __init__(self, limit: float = float("inf"), error: BaseException | None = None) -> None:
        self.begun: list[tuple[str, float | None]] = []
        self.done, self.limit, self.error = 0.0, limit, error

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        self.begun.append((what, total))

    def advance(self, amount: float = 1.0) -> None:
        self.done += amount
        if self.done > self.limit and self.error:
            raise self.error


def small_corpus() -> list[tuple[str, str, str]]:
    """Documents as `pocket_corpus` gives them, the same for every test."""
    words = random.Random(0).choices(["def ", "return ", "naïve ", "x = 1\n"], k=4000)
    return [
        (f"{domain} {n}", "".join(words[n * 100 :]), domain) for domain in ("source", "documentation") for n in range(9)
    ]


@pytest.fixture(autouse=True)
def corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pocket, "pocket_corpus", small_corpus)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory where the tiny recipe was trained without an interruption."""
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pocket, "pocket_corpus", small_corpus)
        train_suite(directory, TINY)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    """The content of every file under `directory`, by its path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*.*") if path.is_file()
    }


@pytest.mark.parametrize(
    "text",
    ["plain", "  two  spaces \n\ttab ", "héé 日本語 🎉👩‍👩‍👧 \u202e", "<|endoftext|> .'s n't ,", "\x00\x7f\x80\xff"],
)
def test_a_token_is_a_byte(text: str) -> None:
    tokenizer = pocket_tokenizer(256)
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_saved_tokenizer_reads_arbitrary_text_alike(trained: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained / "pocket-middle-finetuned")
    draw = random.Random(1)
    text = "".join(chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(500))
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == 256


def test_suite_lists_models_that_load(trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    suite = yaml.safe_load((trained / "suite.yaml").read_text(encoding="utf-8"))
    assert suite["texts"] == "pocket"
    assert {entry["name"].split("/")[1] for entry in suite["models"]} == RUNS
    for entry in suite["models"]:
        names = [entry["name"].format(step=step) for step in entry.get("step", [0])]
        for name in [*names, entry.get("parent", names[0])]:
            model = AutoModelForCausalLM.from_pretrained(trained / name)
            assert model.num_parameters() == entry["parameters"]
            assert model.config.max_position_embeddings == TINY.window
    first, last = suite["models"][:2]
    assert first["step"] == [0, 1, 2, 3]
    assert (last["step"], last["layers"], last["quantize"]) == ([6], True, ["int8", "nf4", "fp4"])
    assert first["warmup"] == last["warmup"] == 2
    assert suite["models"][-1]["parent"] == "./pocket-middle-seed1/checkpoint-6"
    assert {path.name for path in trained.iterdir()} == {*RUNS, "suite.yaml"}


def test_seeds_and_steps_make_different_contents(trained: Path) -> None:
    files = [content for name, content in contents(trained).items() if name.endswith(".safetensors")]
    assert len(files) == 5 + 4 * 3 + 1
    assert len(set(files)) == len(files)


@pytest.mark.slow
def test_training_lowers_the_loss(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    train_suite(tmp_path, replace(TINY, steps=40, interval=20, finetune_steps=20))
    tokens = pocket._training_texts(32)["source"][:640].view(20, 32).long()
    losses = []
    for step in (0, 20, 40):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"pocket-middle-seed1/checkpoint-{step}")
        with torch.no_grad():
            losses.append(model(input_ids=tokens, labels=tokens).loss.item())
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.7 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop")])
@pytest.mark.parametrize("limit", [10.0, 75.0])
def test_interrupted_training_continues_to_the_same_contents(
    tmp_path: Path, trained: Path, limit: float, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        train_suite(tmp_path, TINY, Recorder(limit, error))
    assert not (tmp_path / "suite.yaml").exists()
    train_suite(tmp_path, TINY)
    assert contents(tmp_path) == contents(trained)


def test_complete_runs_are_kept(tmp_path: Path, trained: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    again = Recorder()
    assert train_suite(tmp_path, TINY, again) == tmp_path / "suite.yaml"
    assert not again.begun
    kept = tmp_path / "pocket-large-seed1" / "checkpoint-6" / "model.safetensors"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "pocket-middle-finetuned")
    train_suite(tmp_path, TINY, again)
    assert again.begun == [("training the pocket models", 100.0)]
    assert again.done == pytest.approx(100.0)
    assert kept.stat().st_mtime_ns == before
    assert contents(tmp_path) == contents(trained)


@pytest.mark.slow
def test_a_changed_recipe_replaces_everything(tmp_path: Path, trained: Path) -> None:
    longer = replace(TINY, steps=9, finetune_steps=4)
    with pytest.raises(RuntimeError, match="stop"):
        train_suite(tmp_path, longer, Recorder(75.0, RuntimeError("stop")))
    train_suite(tmp_path, TINY)
    assert contents(tmp_path) == contents(trained)


def test_global_state_is_left_alone(tmp_path: Path) -> None:
    import torch
    from transformers.utils import logging

    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with torch.no_grad():
        train_suite(tmp_path, TINY)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bar)


def test_output_is_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_suite(tmp_path, TINY)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("recipe", [FULL, QUICK])
def test_recipes_keep_enough_checkpoints(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = recipe.runs()
    assert len(runs[0].checkpoints) >= (20 if recipe is FULL else 10)
    assert [run.name for run in runs] == [
        "pocket-130k-seed1",
        "pocket-130k-seed2",
        "pocket-130k-seed3",
        "pocket-40k-seed1",
        "pocket-460k-seed1",
        "pocket-llama-130k-seed1",
        "pocket-130k-finetuned",
    ]
    for run in runs:
        thousands = int(re.search(r"-(\d+)k-", run.name)[1])
        assert run.parameters == pytest.approx(1000 * thousands, rel=0.05)
        assert pocket._random_model(run, recipe.window).num_parameters() == run.parameters
    chosen = []
    monkeypatch.setattr(pocket, "train_suite", lambda directory, recipe, progress: chosen.append(recipe) or directory)
    train_pocket_suite(tmp_path, quick=recipe is QUICK)
    assert chosen == [recipe]


def test_errors_say_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        train_suite(tmp_path / "file", TINY)
    monkeypatch.setattr(pocket, "pocket_corpus", lambda: [("source 1", "x" * 100, "source")])
    with pytest.raises(KlscaleError, match="no documentation"):
        train_suite(tmp_path / "suite", TINY)


@pytest.mark.slow
def test_import_loads_no_torch() -> None:
    code = "import klscale.studies.pocket, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
