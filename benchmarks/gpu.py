"""Is scoring on a GPU right, and how fast is it? Checks and measurements in at most eight minutes.

    python benchmarks/gpu.py > gpu.md     one CUDA device; the parts may be named: `check recovery`
    python benchmarks/gpu.py --tiny       the same code on a CPU with tiny shapes, in seconds; its speeds mean nothing

It runs on Linux from a checkout, without installation or network, where torch, transformers, NumPy, SciPy and psutil
are. Weights and token ids are random; one text has 32 to 384 tokens. Each part has its own process and time limit: one
that fails, or takes too long, ends alone, and what it has measured until then is kept. The script prints a table, and
the same as JSON. The exit status is 1 where a part fails or a check does not pass.

- `check`: the engine, and a plain loop, against the whole model in float64 on the CPU.
- `recovery`: one batch for all texts, in memory that it cannot fit into. No text may be lost.
- `tiles`: seconds and memory of the output head by the size of its tiles.
- `1B`, `8B`: the engine in bfloat16, beside a plain Hugging Face loop and the limit: backbone and output projection
  alone, rows of one length, no softmax. Rounds are interleaved. Memory is the peak above the weights.
- `int8-kernel`, `nf4-kernel`: of bitsandbytes, loaded by klscale, against the same weights dequantized.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from klscale.inputs.references import ModelRef
from klscale.science.arrays import Floats
from klscale.sources.quiet import quiet_transformers
from klscale.sources.tokens import Tokens
from klscale.sources.transformers import head
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.head import OutputHead
from klscale.sources.transformers.load import LoadedModel, load

with quiet_transformers():
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LIMIT_S = 450
"""Seconds for all parts; the script's own imports come before."""
ROUNDS, ROUNDS_S = 4, 40
"""Rounds of `1B` and `8B`, the first not counted; and seconds after which no third one begins."""
SHORTEST, LONGEST = 32, 384
"""Tokens of a text."""
MOST_ERROR = 1e-3
"""Largest error in nats a text that passes in float32, as documented. In bfloat16, that of the plain loop counts."""

CHECKED = {
    "model_type": "gpt_neox", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "intermediate_size": 2048, "vocab_size": 50304, "initializer_range": 0.1, "tie_word_embeddings": False,
}  # fmt: skip
"""70M. Weights so large that logits spread as a trained model's do."""
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8B": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Those of Llama 3."""
TINY = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 2560,
}  # fmt: skip


NATS = "nats a text, largest"


@dataclass(frozen=True)
class Row:
    """One number with its unit; the lowest and highest of several rounds where there are; whether a check passed."""

    part: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    passed: bool | None = None

    def __str__(self) -> str:
        return f"{self.what}: {self.value:.3g} {self.unit}"


class SkippedError(Exception):
    """A part that this machine cannot run."""


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    tiny: bool

    @property
    def device(self) -> str:
        return "cpu" if self.tiny else "cuda"

    def texts(self, n: int, shape: Mapping[str, Any]) -> Tokens:
        """Random ids of a shape's vocabulary."""
        random, vocabulary = np.random.default_rng(0), self.settings(shape)["vocab_size"]
        lengths = random.integers(SHORTEST, LONGEST + 1, 4 if self.tiny else n)
        return Tokens.from_rows([random.integers(0, vocabulary, length, np.int32) for length in lengths])

    def settings(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        return {name: TINY.get(name, value) if self.tiny else value for name, value in shape.items()}

    def model(self, shape: Mapping[str, Any], dtype: str) -> LoadedModel:
        """Random weights, made on the device."""
        torch.manual_seed(0)
        with torch.device(self.device):
            config = AutoConfig.for_model(**{"model_type": "llama", **self.settings(shape)})
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        return LoadedModel(ModelRef("random", dtype=dtype), model.eval(), None, config.max_position_embeddings)

    def finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Gives back the memory that nothing holds."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()

    def timed(self, work: Callable[[], Any]) -> tuple[float, float, Any]:
        """Seconds, peak of memory in GB above what is held before (NaN on a CPU), and what `work` returns."""
        before = peak = float("nan")
        if self.device == "cuda":
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        self.finish()
        start = time.perf_counter()
        found = work()
        self.finish()
        seconds = time.perf_counter() - start
        if self.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        return seconds, (peak - before) / 1e9, found

    def matrix_rate(self) -> float:
        """Measured operations a second of large matrix products in bfloat16."""
        size, times = (256, 1) if self.tiny else (8192, 20)
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))

        def work() -> None:
            for _ in range(times):
                a @ b

        work()
        return 2 * size**3 * times / self.timed(work)[0]


# ------------------------------------------------------------------------------------------------- log-likelihoods


def by_engine(engine: Engine, tokens: Tokens) -> Floats:
    """Log-likelihoods (N,) in nats."""
    values = np.full(len(tokens.lengths), np.nan)
    for block in engine.score(tokens, range(len(values))):
        values[block.text] = block.log_likelihood
    return values


@torch.inference_mode()
def by_plain_loop(model: PreTrainedModel, tokens: Tokens, device: str) -> Floats:
    """The same by the loss of transformers, one text at a time."""
    values = []
    for s in range(len(tokens.lengths)):
        ids = torch.from_numpy(tokens.of(s)).long()[None].to(device)
        values.append(-model(ids, labels=ids, use_cache=False).loss.item() * (ids.shape[1] - 1))
    return np.array(values)


@torch.no_grad()
def by_float64(model: PreTrainedModel, tokens: Tokens) -> Floats:
    """The same from the whole model in float64 on the CPU, where it stays, with the weights as they are."""
    model.to("cpu", torch.float64)
    values = []
    for s in range(len(tokens.lengths)):
        ids = torch.from_numpy(tokens.of(s)).long()
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        values.append((logits.gather(1, ids[1:, None])[:, 0] - logits.logsumexp(1)).sum().item())
    return np.array(values)


# ----------------------------------------------------------------------------------------------------------- parts


def check(bench: Bench) -> Iterator[Row]:
    tokens = bench.texts(24, CHECKED)
    for dtype in ("float32", "bfloat16"):
        loaded = bench.model(CHECKED, dtype)
        engine = Engine(loaded, device=bench.device)
        values = by_engine(engine, tokens)
        others = by_engine(Engine(loaded, device=bench.device, batch_tokens=LONGEST, padded=True), tokens)
        plain = by_plain_loop(loaded.model, tokens, bench.device)
        exact = by_float64(loaded.model, tokens)
        most = MOST_ERROR if dtype == "float32" else 2 * largest(plain - exact)
        tiled = not engine.own_logits
        yield Row("check", f"{dtype}: output head in tiles", float(tiled), "(1: yes)", passed=tiled)
        for what, difference in (("engine to float64", values - exact), ("other batches", values - others)):
            error = largest(difference)
            yield Row("check", f"{dtype}: {what}", error, NATS, passed=error <= most)
        yield Row("check", f"{dtype}: plain loop to float64", largest(plain - exact), NATS)


class Squeezed(Engine):
    """Counts how often its batches were halved. On a CPU, batches of more than `most` columns run out of memory."""

    halved, most = 0, 0

    def _halve(self, batch: Sequence[Any]) -> None:
        self.halved += 1
        super()._halve(batch)

    def _hidden_states(self, inputs: Tensor, cache: Any = None) -> Tensor:
        if self.device.type == "cpu" and inputs.numel() > self.most:
            raise torch.OutOfMemoryError("simulated")
        return super()._hidden_states(inputs, cache)


def recovery(bench: Bench) -> Iterator[Row]:
    tokens, loaded = bench.texts(256, SHAPES["1B"]), bench.model(SHAPES["1B"], "float32")
    expected = by_engine(Engine(loaded, device=bench.device), tokens)
    bench.clear()
    if bench.device == "cuda":  # half a gigabyte above the weights: less than one activation of all texts
        free = torch.cuda.memory_reserved() + 2**29
        torch.cuda.set_per_process_memory_fraction(free / torch.cuda.get_device_properties(0).total_memory)
    engine = Squeezed(loaded, device=bench.device, batch_tokens=2**30, fewest=True)
    engine.most = LONGEST
    values = by_engine(engine, tokens)
    yield Row("recovery", "batches halved for lack of memory", engine.halved, "times", passed=engine.halved > 0)
    error = largest(values - expected)
    yield Row("recovery", "float32: to ordinary batches", error, NATS, passed=error <= MOST_ERROR)


def tiles(bench: Bench) -> Iterator[Row]:
    n, width, vocabulary = (64, 64, 5000) if bench.tiny else (16384, 4096, 128256)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(rows, width, device=bench.device, dtype=torch.bfloat16) for rows in (n, vocabulary))
    target = torch.randint(vocabulary, (n,), device=bench.device)
    output = OutputHead(weight / width**0.5)
    own, factor = (head.TOKENS, head.VOCABULARY), 1 if bench.tiny else 4
    expected = output.log_likelihood(hidden, target)
    rate = bench.matrix_rate()
    sizes = [own] + [(t, v) for t in (512, 2048, 4096) for v in (256, 1024, 4096, 8192) if (t, v) != own]
    for rows, columns in sizes:
        with patch.multiple(head, TOKENS=rows, VOCABULARY=columns):
            runs = [bench.timed(partial(output.log_likelihood, hidden, target)) for _ in range(4)][1:]
        seconds, peaks, found = zip(*runs, strict=True)
        what = f"{rows * factor} tokens x {columns * factor} entries{', as it is' * ((rows, columns) == own)}"
        same = bool((found[0] - expected).abs().max() <= 1e-3)
        shares = [2 * n * width * vocabulary / s / rate for s in seconds]
        yield spread("tiles", what, shares, "of the matrix rate", passed=same)
        yield from in_memory("tiles", what, max(peaks))


def speed(bench: Bench, name: str) -> Iterator[Row]:
    loaded, tokens = bench.model(SHAPES[name], "bfloat16"), bench.texts(256, SHAPES[name])
    model, n = loaded.model, len(tokens.lengths)
    weight = model.get_output_embeddings().weight
    budget = Engine(loaded, device=bench.device).batch_tokens
    mean = int(tokens.lengths.mean())
    rows = torch.from_numpy(tokens.ids[: n * mean]).long().view(n, mean).to(bench.device)

    @torch.inference_mode()
    def limit() -> None:
        for ids in rows.split(max(1, budget // mean)):
            states = model.base_model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
            for part in states.split(4096):
                part @ weight.T

    contestants: dict[str, Callable[[], Any]] = {
        "klscale": lambda: by_engine(Engine(loaded, device=bench.device, batch_tokens=budget), tokens),
        "limit": limit,
        "plain loop": lambda: by_plain_loop(model, tokens, bench.device),
    }
    runs: dict[str, list[tuple[float, float, Any]]] = {contestant: [] for contestant in contestants}
    began = time.monotonic()
    for number in range(2 if bench.tiny else ROUNDS):
        if number > 1 and time.monotonic() - began > ROUNDS_S:
            break
        for contestant, work in contestants.items():
            found = bench.timed(work)
            if number:  # the first round warms up
                runs[contestant].append(found)
    fastest = [seconds for seconds, _, _ in runs["limit"]]
    for contestant, measured in runs.items():
        seconds = [s for s, _, _ in measured]
        yield spread(name, contestant, [n / s for s in seconds], "texts/s")
        if contestant != "limit":
            shares = [least / s for least, s in zip(fastest, seconds, strict=True)]
            yield spread(name, contestant, shares, "of the limit")
            yield from in_memory(name, contestant, max(peak for _, peak, _ in measured))
    rate = bench.matrix_rate()
    yield Row(name, "large matrix product", rate / 1e12, "TFLOP/s")
    products = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 2 * model.config.num_hidden_layers * model.config.hidden_size
    lengths = tokens.lengths
    needed = products * int(lengths.sum()) + attention * int((lengths**2).sum())
    yield spread(name, "klscale", [needed / s / rate for s, _, _ in runs["klscale"]], "of the matrix rate")
    yield Row(name, "klscale to the plain loop", largest(runs["klscale"][0][2] - runs["plain loop"][0][2]), NATS)


def kernel(bench: Bench, kind: str) -> Iterator[Row]:
    if find_spec("bitsandbytes") is None:
        raise SkippedError("bitsandbytes is not installed")
    name, shape = f"{kind}-kernel", SHAPES["1B"]
    tokens, values = bench.texts(64, shape), {}
    with tempfile.TemporaryDirectory() as folder:
        bench.model(shape, "bfloat16").model.save_pretrained(folder)
        save_tokenizer(folder)
        for quantization in (kind, name):
            bench.clear()
            loaded = load(resolve(ModelRef(folder, quantization=quantization, dtype="bfloat16")), bench.device)
            score = partial(by_engine, Engine(loaded, device=bench.device), tokens)
            score()
            seconds, peak, values[quantization] = bench.timed(score)
            yield Row(name, quantization, len(tokens.lengths) / seconds, "texts/s")
            yield from in_memory(name, quantization, peak)
            del loaded, score
    yield Row(name, f"{name} to {kind}", largest(values[name] - values[kind]), NATS)


def save_tokenizer(folder: str) -> None:
    """Bytes, for a directory that must have a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {token: n for n, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(alphabet, []))).save_pretrained(folder)


def largest(differences: Floats) -> float:
    return float(np.abs(differences).max())


def spread(part: str, what: str, values: Sequence[float], unit: str, *, passed: bool | None = None) -> Row:
    return Row(part, what, statistics.median(values), unit, min(values), max(values), passed)


def in_memory(part: str, what: str, gigabytes: float) -> Iterator[Row]:
    if gigabytes == gigabytes:  # not known on a CPU
        yield Row(part, what, gigabytes, "GB above the weights")


PARTS: dict[str, tuple[int, Callable[[Bench], Iterator[Row]]]] = {
    "check": (80, check),
    "recovery": (50, recovery),
    "tiles": (40, tiles),
    "1B": (70, partial(speed, name="1B")),
    "8B": (110, partial(speed, name="8B")),
    "int8-kernel": (55, partial(kernel, kind="int8")),
    "nf4-kernel": (55, partial(kernel, kind="nf4")),
}
"""Seconds that each part may take, and the part; what matters most comes first."""


# ------------------------------------------------------------------------------------------------- one after another


def machine(bench: Bench) -> Iterator[str]:
    """In words. Raises SkippedError where there is no CUDA device."""
    if bench.tiny:
        yield "a CPU with tiny shapes, whose speeds mean nothing"
    elif torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}"
    else:
        raise SkippedError("torch finds no CUDA device; --tiny runs on a CPU")


def in_child(pipe: Any, bench: Bench, work: Callable[[Bench], Any]) -> None:
    """Sends each row as it is measured, then how it ended."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        for found in work(bench):
            pipe.send(("row", found))
        pipe.send(("done", ""))
    except SkippedError as error:
        pipe.send(("skipped", str(error)))
    except Exception as error:
        pipe.send(("failed", " ".join(f"{type(error).__name__}: {error}".split())[:400]))


def run(bench: Bench, work: Callable[[Bench], Any], seconds: float) -> tuple[list[Any], str, str]:
    """What a part has measured, how it ended (done, skipped, failed), and why."""
    # Forked, a child has all imports; but what touches CUDA, as an import may, can no longer be forked.
    context = multiprocessing.get_context("fork" if bench.tiny else "spawn")
    end = time.monotonic() + seconds
    near, far = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(far, bench, work), daemon=True)
    child.start()
    far.close()
    rows = []
    try:
        while near.poll(max(0.0, end - time.monotonic())):
            kind, found = near.recv()
            if kind != "row":
                return rows, kind, found
            rows.append(found)
            print(f"  {found}", file=sys.stderr, flush=True)
        return rows, "failed", f"not done after {seconds:.0f} s"
    except EOFError:
        child.join()
        return rows, "failed", f"its process ended with status {child.exitcode}"
    finally:
        child.kill()
        child.join()


def table(rows: Sequence[Row], ends: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    yield "| part | what | value | lowest to highest | unit | check |"
    yield "|---|---|---|---|---|---|"
    for name, (end, why) in ends.items():
        for row in rows:
            if row.part == name:
                between = "" if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
                passed = {None: "", True: "passed", False: "**not passed**"}[row.passed]
                yield f"| {name} | {row.what} | {row.value:.3g} | {between} | {row.unit} | {passed} |"
        if end != "done":
            why = why.replace("|", "/")
            yield f"| {name} | {end}: {why} | | | | |"


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--tiny", action="store_true", help="on a CPU with tiny shapes")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"unknown part {min(unknown)!r}: there are {', '.join(PARTS)}")
    bench = Bench(options.tiny)
    told, end, why = run(bench, machine, 60)
    if end != "done":
        parser.error(why)
    rows, ends = list[Row](), dict[str, tuple[str, str]]()
    for name, (seconds, work) in PARTS.items():
        if options.parts and name not in options.parts:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        found, *ended = run(bench, work, min(seconds, LIMIT_S - (time.monotonic() - began)))
        rows += found
        ends[name] = (ended[0], ended[1])
    versions = {package.__name__: package.__version__ for package in (torch, transformers, np)}
    about = {"machine": told[0], "python": platform.python_version(), **versions}
    print("\n".join(["# Scoring on a GPU", "", "; ".join(" ".join(pair) for pair in about.items()), ""]))
    print("\n".join(table(rows, ends)))
    kept = {**about, "parts": {name: {"end": end, "why": why} for name, (end, why) in ends.items()}}
    print("\n```json\n" + json.dumps({**kept, "rows": [asdict(row) for row in rows]}) + "\n```")
    failed = any(end == "failed" for end, _ in ends.values()) or any(row.passed is False for row in rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
