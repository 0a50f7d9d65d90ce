"""What tests share: the developers' material where it is, a byte-level tokenizer, and tiny random models."""

from __future__ import annotations

import functools
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from filelock import FileLock

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet
from klscale.progress import Progress
from klscale.show.terminal import out

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("KLSCALE_SHARED") or ROOT.parent / "shared")
EXAMPLE = ROOT / "examples" / "pile-trained-14.csv"
PATIENCE_S = 600
"""Ends a test that hangs. No machine is so slow that what works takes as long."""


# A shell script's background processes ignore Ctrl-C, and what they start inherits that: the commands of the tests too.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests run a thousand commands; each would build all commands with their options again. They hold no state.
typer.main.get_command = functools.cache(typer.main.get_command)


# The garbage collector would search what the tests import, some 700,000 objects that stay, again and again.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


class Interrupt(Progress):
    """Ctrl-C after so many megabytes of text."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self.after, self.unit = after, ""

    def begin(self, what: str, total: float | None = None, unit: str = "") -> None:
        super().begin(what, total, unit)
        self.unit = unit

    def advance(self, amount: float = 1.0) -> None:
        super().advance(amount)
        if self.unit == "MB of text" and self.done >= self.after:
            raise KeyboardInterrupt


@contextmanager
def whole_tables() -> Iterator[Any]:
    """Captures what is printed, with every column of the tables."""
    out.widen(True)
    try:
        with out.capture() as captured:
            yield captured
    finally:
        out.widen(False)


def wait_until(condition: Callable[[], object]) -> None:
    """For what another process or thread does and has no event for."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache or store."""
    monkeypatch.setenv("KLSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KLSCALE_STORE", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the developers' material: set KLSCALE_SHARED, there is none at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `klscale demo --quick` leaves, and says (`stdout.txt`): one for all processes of the tests."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    place = place / "quick"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "KLSCALE_CACHE": str(place / "cache")}
    command = [sys.executable, "-m", "klscale", "demo", "--quick", "--out", "demo"]
    with FileLock(f"{place}.lock"):
        if not (place / "demo" / "stdout.txt").exists():
            place.mkdir(exist_ok=True)
            result = subprocess.run(command, cwd=place, capture_output=True, text=True, env=environment)
            assert result.returncode == 0, result.stderr
            (place / "demo" / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    return place / "demo"


@pytest.fixture(scope="session")
def fourteen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the 14 models of the example, imported as the README does; to be copied where a test writes."""
    from typer.testing import CliRunner

    from klscale.cli import app

    place = tmp_path_factory.mktemp("fourteen") / "klscale-store"
    result = CliRunner().invoke(app, ["import", str(EXAMPLE), "--id", "text_id", "--store", str(place)])
    assert result.exit_code == 0, result.output
    return place


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """A real pretrained model of 260k parameters."""
    return shared / "models" / "stories260K"


@pytest.fixture
def texts() -> TextSet:
    """40 short texts with characters of one to four bytes, two domains, two texts a document."""
    generator = np.random.default_rng(0)
    words = ["tree", "grün", "日本", "🙂", "house", "and", "the", "of\n", "π", "runs"]
    made = [" ".join(generator.choice(words, size=generator.integers(3, 30))) for _ in range(40)]
    return TextSet.from_texts("tiny", made, domain=("a", "b") * 20)


@pytest.fixture
def few_texts(texts: TextSet) -> TextSet:
    """The first 10 of them, of 12 to 160 bytes: for what is tested of every architecture."""
    return TextSet.from_texts("few", (texts.texts or ())[:10])


def byte_tokenizer(bos: bool = False) -> Any:
    """Every byte one token, <s> in front where asked for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*alphabet, "<s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", clean_up_tokenization_spaces=False)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-neox": ("GPTNeoXConfig", {**SMALL, "max_position_embeddings": 512}),
    "llama, grouped queries": ("LlamaConfig", {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 512}),
    "gpt2, tied": (
        "GPT2Config",
        {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    ),
    "gemma2, soft cap": (
        "Gemma2Config",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 3.0},
    ),
    "cohere, logit scale": (
        "CohereConfig",
        {**SMALL, "num_key_value_heads": 2, "logit_scale": 0.3, "max_position_embeddings": 512, "pad_token_id": 0},
    ),
    "granite, logit divisor": (
        "GraniteConfig",
        {**SMALL, "num_key_value_heads": 2, "logits_scaling": 4.0, "max_position_embeddings": 512},
    ),
    "opt, projected": (
        "OPTConfig",
        {
            "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
            "word_embed_proj_dim": 16, "max_position_embeddings": 512, "pad_token_id": 1,
        },
    ),
    "phi, head bias": ("PhiConfig", {**SMALL, "max_position_embeddings": 512}),
    "gpt-j": (
        "GPTJConfig",
        {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 4},
    ),
    "mistral, sliding window": (
        "MistralConfig",
        {**SMALL, "num_key_value_heads": 2, "sliding_window": 16, "max_position_embeddings": 512},
    ),
    "qwen2": ("Qwen2Config", {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 512}),
    "qwen3": ("Qwen3Config", {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}),
    "gemma3": (
        "Gemma3TextConfig",
        {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16, "max_position_embeddings": 512},
    ),
    "bloom": ("BloomConfig", {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": (
        "FalconConfig",
        {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "stablelm": ("StableLmConfig", {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 512}),
    "mixtral, experts": (
        "MixtralConfig",
        {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 512},
    ),
    "llama, tied": ("LlamaConfig", {**SMALL, "tie_word_embeddings": True, "max_position_embeddings": 512}),
    "phi3": ("Phi3Config", {**SMALL, "max_position_embeddings": 512, "pad_token_id": 0}),
    "olmo2": ("Olmo2Config", {**SMALL, "max_position_embeddings": 512}),
    "qwen3, experts": (
        "Qwen3MoeConfig",
        {
            **SMALL, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 32, "max_position_embeddings": 512,
        },
    ),
    "gpt-oss, attention sinks": (
        "GptOssConfig",
        {
            **SMALL, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
            "sliding_window": 16, "max_position_embeddings": 512,
        },
    ),
    "deepseek v3, latent attention": (
        "DeepseekV3Config",
        {
            **SMALL, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 2,
            "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "kv_lora_rank": 16,
            "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
            "max_position_embeddings": 512,
        },
    ),
    "gpt bigcode, one key": (
        "GPTBigCodeConfig",
        {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "multi_query": True},
    ),
    "mpt, alibi": (
        "MptConfig",
        {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 512},
    ),
    "recurrent gemma": (
        "RecurrentGemmaConfig",
        {
            **SMALL, "num_key_value_heads": 2, "head_dim": 8, "lru_width": 32, "attention_window_size": 16,
            "logits_soft_cap": 3.0, "num_hidden_layers": 3,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        {
            "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8,
            "head_dim": 8, "n_groups": 2, "chunk_size": 16,
        },
    ),
    "falcon h1, hybrid with multipliers": (
        "FalconH1Config",
        {
            **SMALL, "num_key_value_heads": 2, "head_dim": 8, "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8,
            "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16, "lm_head_multiplier": 0.3,
            "max_position_embeddings": 512, "pad_token_id": 0,
        },
    ),
    "jamba, hybrid with experts": (
        "JambaConfig",
        {
            **SMALL, "num_key_value_heads": 2, "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8,
            "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False, "max_position_embeddings": 512,
        },
    ),
    "gpt neo, local attention": (
        "GPTNeoConfig",
        {
            "vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48,
            "attention_types": [[["global", "local"], 1]], "window_size": 16, "max_position_embeddings": 512,
        },
    ),
    "rwkv, recurrent": (
        "RwkvConfig",
        {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    ),
    "bert, bidirectional": ("BertConfig", {**SMALL, "max_position_embeddings": 512, "is_decoder": False}),
    "mamba": ("MambaConfig", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
}  # fmt: skip

MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def models_made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A randomly initialised model of some architecture in a directory, made once; weights large enough to matter."""
    made: dict[str, Path] = {}

    def make(architecture: str, seed: int, bos: bool, odd_biases: bool, changes: dict[str, Any]) -> Path:
        key = repr((architecture, seed, bos, odd_biases, changes))
        if key not in made:
            import torch
            import transformers

            config_class, settings = ARCHITECTURES[architecture]
            config = getattr(transformers, config_class)(**{**settings, **changes})
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = transformers.AutoModelForCausalLM.from_config(config)
                for parameter in model.parameters():
                    if parameter.ndim > 1:
                        torch.nn.init.normal_(parameter, std=0.2)
                    elif odd_biases:
                        torch.nn.init.normal_(parameter, std=0.5)
            made[key] = tmp_path_factory.mktemp("model")
            model.save_pretrained(made[key])
            byte_tokenizer(bos).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def make_model(tmp_path: Path, models_made: Callable[..., Path]) -> MakeModel:
    """Put a randomly initialised model of some architecture into a directory of this test, which may change it."""

    def make(
        name: str = "model", architecture: str = "gpt-neox", seed: int = 0, bos: bool = False, **changes: Any
    ) -> Path:
        model = models_made(architecture, seed, bos, "bias" in name, changes)
        return Path(shutil.copytree(model, tmp_path / name, copy_function=shutil.copyfile, dirs_exist_ok=True))

    return make


def plain_log_likelihoods(directory: Path, texts: TextSet, dtype: str = "float32") -> Any:
    """The independent computation: one unpadded text at a time, the model's own logits, float64 log-softmax and sum."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    values = []
    with torch.no_grad():
        for text in texts.texts or ():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            log_probabilities = model(ids, use_cache=False).logits[0, :-1].double().log_softmax(dim=-1)
            values.append(log_probabilities[torch.arange(ids.shape[1] - 1), ids[0, 1:]].sum().item())
    return np.array(values)


def values_of(ref: ModelRef, texts: TextSet) -> tuple[Any, Any]:
    """Log-likelihoods (N,) of a model as the engine reads it on the CPU, and the loaded model."""
    from klscale.sources.transformers.engine import Engine
    from klscale.sources.transformers.files import resolve
    from klscale.sources.transformers.load import load
    from klscale.sources.transformers.tokens import tokenize

    loaded = load(resolve(ref))
    values = np.full(len(texts), np.nan)
    for block in Engine(loaded, device="cpu").score(tokenize(loaded.tokenizer, texts), range(len(texts))):
        values[block.text] = block.log_likelihood
    return values, loaded


def write_texts(path: Path, n: int = 60) -> Path:
    generator = np.random.default_rng(0)
    lines = ["".join(generator.choice(list("abc deé"), size=generator.integers(20, 90))) for _ in range(n)]
    path.write_text(
        "".join(json.dumps({"text": "t" + line, "domain": "ab"[n % 2]}) + "\n" for n, line in enumerate(lines))
    )
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in an empty directory; returns its result. Its status is 0, or `status` (None: any)."""
    monkeypatch.chdir(tmp_path)
    from typer.testing import CliRunner

    from klscale.cli import app

    runner = CliRunner()

    def call(*arguments, status=0):
        result = runner.invoke(app, list(map(str, arguments)))
        assert status in (None, result.exit_code), result.output + repr(result.exception)
        assert "Traceback" not in result.output
        return result

    return call
