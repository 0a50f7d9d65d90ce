"""The pocket suite: small byte-level language models, trained in a minute on this Python installation's own text.

Real models without a download: three sizes, three seeds, two architectures, a run with many checkpoints and a
fine-tuned model, and for the last checkpoints their layers and quantized variants.

    suite = train_pocket_suite(Path("pocket"), quick=True)      # pocket/suite.yaml
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from klscale.errors import InputError, KlscaleError
from klscale.inputs.texts import is_held_out, pocket_corpus
from klscale.progress import SILENT, Progress


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, except the text. A changed recipe makes other models: they are trained
    anew.

    The middle size is trained with every seed, once as another architecture, and fine-tuned. The other sizes are
    trained with the first seed.
    """

    sizes: tuple[tuple[str, int], ...] = (("40k", 32), ("130k", 64), ("460k", 128))
    """Name and width of each size."""
    layers: int = 2
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 800
    interval: int = 40
    """Steps between regular checkpoints."""
    followed: int = 3
    """The first so many runs keep all regular checkpoints; the very first also keeps steps that are powers of two."""
    last: int = 3
    """The other runs keep their last so many checkpoints."""
    quantized: int = 6
    """The first so many runs have their last checkpoint scored in `QUANTIZED` too."""
    warmup: int = 40
    """Steps until the learning rate is at its peak; a cosine to a tenth of the peak follows."""
    finetune_steps: int = 80
    batch: int = 4
    """Sequences a step: many small steps teach most in a given time."""
    window: int = 256
    """Length of a sequence in bytes, and of the longest text that the models can read."""
    learning_rate: float = 0.05
    """Peak learning rate times the square root of the width."""
    finetune_rate: float = 0.02
    """Peak learning rate of fine-tuning, as a fraction of that of pretraining. A larger one leads far from the
    parent."""

    def runs(self) -> list[Run]:
        """The runs. The first keeps all checkpoints (0, 1, 2, 4, ..., then regular), its other seeds the regular ones,
        and the others their last ones. The last run is fine-tuned from the first."""
        powers = (2**n for n in range(self.interval.bit_length()) if 2**n < self.interval)
        regular = [*range(0, self.steps, self.interval), self.steps]
        steps = sorted({*powers, *regular})
        middle, width = self.sizes[len(self.sizes) // 2]
        models = [(middle, width, seed) for seed in self.seeds]
        models += [(size, width, self.seeds[0]) for size, width in self.sizes if size != middle]
        runs = [
            Run(
                f"pocket-{size}-seed{seed}", width, self.layers, seed,
                tuple(steps if n == 0 else regular if n < self.followed else regular[-self.last :]),
            )
            for n, (size, width, seed) in enumerate(models)
        ]  # fmt: skip
        middle, width = self.sizes[len(self.sizes) // 2]
        llama = Run(
            f"pocket-llama-{middle}-seed{self.seeds[0]}", width, self.layers, self.seeds[0], runs[-1].checkpoints,
            architecture="llama",
        )  # fmt: skip
        parent = f"{runs[0].name}/checkpoint-{self.steps}"
        tuned = Run(f"pocket-{middle}-finetuned", width, self.layers, self.seeds[0], (self.finetune_steps,), parent)
        return [*runs, llama, tuned]


@dataclass(frozen=True)
class Run:
    """One training run, saved at the steps `checkpoints`.

    `parent` (RUN/checkpoint-STEP) is the model that it fine-tunes on documentation. Without a parent it starts from
    random weights and reads source code. `architecture` is `gpt_neox` or, of about the same size, `llama`.
    """

    name: str
    width: int
    layers: int
    seed: int
    checkpoints: tuple[int, ...]
    parent: str | None = None
    architecture: str = "gpt_neox"

    @property
    def steps(self) -> int:
        return self.checkpoints[-1]

    @property
    def domain(self) -> str:
        return "documentation" if self.parent else "source"

    @property
    def family(self) -> str:
        return "pocket" if self.architecture == "gpt_neox" else f"pocket-{self.architecture}"

    @property
    def inner_width(self) -> int:
        """Width of the inner part of a layer; a Llama model has three matrices there instead of two."""
        return 4 * self.width if self.architecture == "gpt_neox" else 5 * self.width // 2

    @property
    def parameters(self) -> int:
        """Number of parameters of a model for bytes with an output embedding of its own."""
        if self.architecture == "gpt_neox":
            return (2 * 256 + 2) * self.width + self.layers * (12 * self.width + 13) * self.width
        block = 4 * self.width + 3 * self.inner_width + 2
        return (2 * 256 + 1 + self.layers * block) * self.width

    @property
    def step_cost(self) -> int:
        """Time of a step in arbitrary units. Part of it does not depend on the width (measured)."""
        return self.parameters + 170_000


QUANTIZED = ("int8", "nf4", "fp4")
"""Kinds of quantization; none needs training."""
FULL = Recipe()
QUICK = Recipe(steps=42, interval=7, followed=1, last=1, quantized=1, warmup=7, finetune_steps=21)
QUICK_TEXTS = 200
"""Texts of the quick demo."""


def train_pocket_suite(directory: Path, *, quick: bool = False, progress: Progress = SILENT) -> Path:
    """Path of `suite.yaml` in `directory`, after training the models that are missing there.

    Training takes about 80 s on two free cores; with `quick`, about 9 s for models that have learned less. A run's
    directory appears when the run is complete, `suite.yaml` when all are. After an interruption, complete runs are
    kept. Equal seeds give equal weights on one machine. Raises InputError for a directory that cannot be written.
    """
    return train_suite(directory, QUICK if quick else FULL, progress)


def train_suite(directory: Path, recipe: Recipe, progress: Progress = SILENT) -> Path:
    """Path of `suite.yaml`: `train_pocket_suite` with any recipe. Runs in `directory` of another recipe or Python
    version are replaced."""
    suite, text = directory / "suite.yaml", _suite_text(recipe)
    missing = [run for run in recipe.runs() if not _holds(directory / run.name / "recipe.json", _identity(recipe, run))]
    if not missing and _holds(suite, text):
        return suite
    try:
        directory.mkdir(parents=True, exist_ok=True)
        suite.unlink(missing_ok=True)
        if missing:
            _train_all(directory, recipe, missing, progress)
        partial = directory / ".suite.yaml.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(suite)
    except OSError as error:
        what = f"The pocket suite cannot be written to {directory}."
        raise InputError(what, f"{error}.", "Choose another directory.") from error
    return suite


def _suite_text(recipe: Recipe) -> str:
    """The suite file, with names relative to it."""
    lines = [
        f"# Trained on the text of Python {platform.python_version()}.",
        "texts: pocket",
        "models:",
    ]
    for number, run in enumerate(recipe.runs()):
        *earlier, last = run.checkpoints
        about = [
            f"    family: {run.family}", f"    parameters: {run.parameters}", f"    seed: {run.seed}",
            f"    warmup: {recipe.warmup}",
        ]  # fmt: skip
        if run.parent:
            lines += [f"  - name: ./{run.name}", f"    parent: ./{run.parent}", *about[:-1]]
            continue
        if earlier:
            lines += [f"  - name: ./{run.name}/checkpoint-{{step}}", f"    step: {earlier}", *about]
        lines += [f"  - name: ./{run.name}/checkpoint-{{step}}", f"    step: [{last}]", *about]
        lines.append("    layers: true")
        if number < recipe.quantized:
            lines.append(f"    quantize: [{', '.join(QUANTIZED)}]")
    return "\n".join(lines) + "\n"


def _identity(recipe: Recipe, run: Run) -> str:
    """All that determines a run's weights, as JSON; kept in its directory as `recipe.json`."""
    return json.dumps({"run": run.name, "python": platform.python_version(), **asdict(recipe)}, indent=2)


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


# -------------------------------------------------------------------------------------------------------- training


def _train_all(directory: Path, recipe: Recipe, runs: list[Run], progress: Progress) -> None:
    """Train `runs` side by side, each on one core.

    Models this small gain little from a second core, and become ten times slower where another process uses it. With
    one thread for each run, the weights also do not depend on the number of cores.
    """
    progress.begin("training the pocket models", 100.0, "%")
    import torch

    from klscale.sources.quiet import quiet_transformers

    texts = _training_texts(recipe.window)
    with quiet_transformers():
        # Random weights come from torch's global generator, which threads share: they are drawn here, run by run.
        models = {run.name: _random_model(run, recipe.window) for run in runs if run.parent is None}
    events: SimpleQueue[int | Future[None]] = SimpleQueue()
    stop, futures = threading.Event(), dict[str, Future[None]]()

    def work(run: Run) -> None:
        if run.parent and (parent := futures.get(run.parent.split("/")[0])):
            parent.result()  # it was started earlier, so the wait ends
        for _ in _train(directory, recipe, run, models.get(run.name), texts[run.domain]):
            events.put(run.step_cost)
            if stop.is_set():
                raise CancelledError

    threads, total = torch.get_num_threads(), sum(run.steps * run.step_cost for run in runs)
    workers = ThreadPoolExecutor(min(threads, len(runs)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        with quiet_transformers(), workers:
            try:
                # The longest first, so that no core is left with a long one at the end; children after parents.
                for run in sorted(runs, key=lambda run: (run.parent is not None, -run.steps * run.step_cost)):
                    futures[run.name] = workers.submit(work, run)
                    futures[run.name].add_done_callback(events.put)
                running = len(runs)
                while running:
                    event = events.get()
                    if isinstance(event, Future):
                        event.result()
                        running -= 1
                    else:
                        progress.advance(100.0 * event / total)
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)  # part of the workers' setting holds for the whole process


def _train(directory: Path, recipe: Recipe, run: Run, model: Any, text: Any) -> Iterator[None]:
    """Train on random windows of `text` (n_bytes,), and yield after each step. At the end the run's directory
    appears."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM

    partial, tokenizer = directory / f".{run.name}.partial", pocket_tokenizer(recipe.window)
    shutil.rmtree(partial, ignore_errors=True)
    peak = recipe.learning_rate / math.sqrt(run.width)
    if run.parent:
        model = AutoModelForCausalLM.from_pretrained(directory / run.parent)
        peak *= recipe.finetune_rate

    def save(step: int) -> None:
        if step in run.checkpoints:
            place = partial if run.parent else partial / f"checkpoint-{step}"
            model.save_pretrained(place)
            tokenizer.save_pretrained(place)

    def schedule(done: int) -> float:
        decay = max(0, done + 1 - recipe.warmup) / max(1, run.steps - recipe.warmup)
        return min(1.0, (done + 1) / recipe.warmup) * (0.55 + 0.45 * math.cos(math.pi * decay))

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    order = torch.Generator().manual_seed(run.seed)
    save(0)
    for step in range(1, run.steps + 1):
        starts = torch.randint(len(text) - recipe.window + 1, (recipe.batch, 1), generator=order)
        tokens = text[starts + torch.arange(recipe.window)].long()  # (batch, window)
        logits = model(input_ids=tokens, use_cache=False).logits  # (batch, window, 256)
        loss: Any = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        save(step)
        yield
    (partial / "recipe.json").write_text(_identity(recipe, run), encoding="utf-8")
    shutil.rmtree(directory / run.name, ignore_errors=True)
    partial.rename(directory / run.name)


def _training_texts(window: int) -> dict[str, Any]:
    """Domain -> tensor (n_bytes,) of token ids: the pocket documents that are not held out, end to end."""
    import torch

    texts = {"source": bytearray(), "documentation": bytearray()}
    for document, text, domain in pocket_corpus():
        if not is_held_out(document, domain):
            texts[domain] += text.encode()
    for domain, data in texts.items():
        if len(data) < window:
            raise KlscaleError(
                f"This Python installation holds no {domain} to train the pocket models on.",
                remedy="Install the full standard library (Debian: libpython3-stdlib).",
            )
    return {domain: torch.frombuffer(data, dtype=torch.uint8) for domain, data in texts.items()}


def _random_model(run: Run, window: int) -> Any:
    """A model with random weights from the run's seed; torch's global random state does not change."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    common: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": run.width,
        "num_hidden_layers": run.layers,
        "num_attention_heads": min(4, run.width // 16),
        "intermediate_size": run.inner_width,
        "max_position_embeddings": window,
        "initializer_range": run.width**-0.5,  # with the usual 0.02, narrow models learn slowly
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "sdpa",
    }
    rotary = {"rope_type": "default", "rope_theta": 10_000.0}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        if run.architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**common, rope_parameters=rotary))
        return GPTNeoXForCausalLM(GPTNeoXConfig(**common, rope_parameters={**rotary, "partial_rotary_factor": 1.0}))


def pocket_tokenizer(window: int) -> Any:
    """A tokenizer whose token ids are the UTF-8 bytes of the text; it adds no special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # Byte-level tokenizers write a printable Latin-1 byte as itself, the others in order as characters from 256 on.
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in characters if ord(character) < 256]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = dict(zip(characters, printable + others, strict=True))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=window, clean_up_tokenization_spaces=False
    )
