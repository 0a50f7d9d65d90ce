"""Scoring speed and memory: klscale, a plain Hugging Face loop, lm-evaluation-harness, and the limit.

    pip install -e ".[benchmark]" && python benchmarks/scoring.py --out benchmarks/scoring.md
    OMP_NUM_THREADS=1 python benchmarks/scoring.py --models FILE.gguf --texts 40 --bytes 129 512 --dtypes float32

Random weights in real shapes, or the models named; real texts (pieces of this Python's documentation and sources, of
all lengths between `--bytes`). Without lm-evaluation-harness, the others are measured.
Each contestant has its own process and loads the model once. Rounds are interleaved, so that other load on the machine
is the same for all. Seconds: from strings to log-likelihoods, tokenization included (the limit: the model only); with
one thread on a CPU they are seconds of that processor, which other programs do not take part in.
Memory: peak resident (on a GPU: allocated) memory of a round minus that of the loaded model. Error: largest difference,
in nats a text, to float64 log-likelihoods from the same model's hidden states, text by text.

The limit is the work that no scoring avoids, by torch's own products: the network's body on the same number of tokens,
in rows of one length without padding, and the output projection in tiles with their log-sum-exp, while they are in the
cache. It has no targets, spans or checks. Batches of several sizes are tried in the round that warms up, and the
fastest is kept; on a CPU as many are read at once as klscale reads. klscale's own products may pass it.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from klscale.inputs.references import ModelRef
from klscale.inputs.texts import TextSet, build_texts, pocket_corpus
from klscale.sources.quiet import quiet_transformers
from klscale.sources.transformers import products
from klscale.sources.transformers.engine import Engine
from klscale.sources.transformers.files import resolve
from klscale.sources.transformers.head import TOKENS, VOCABULARY, log_sum_exp, widened
from klscale.sources.transformers.load import load
from klscale.sources.transformers.streams import n_streams, streams
from klscale.sources.transformers.tokens import tokenize

Shape = namedtuple("Shape", "hidden_size num_hidden_layers num_attention_heads vocab_size")
SHAPES = {
    "70M, 50k vocabulary": Shape(512, 6, 8, 50304),
    "byte level, 4 layers": Shape(256, 4, 4, 257),
    "1B, 50k vocabulary": Shape(2048, 16, 8, 50304),
}
KLSCALE, LIMIT = "klscale", "limit"
CONTESTANTS = [KLSCALE, LIMIT, "plain loop"]
if find_spec("lm_eval"):
    CONTESTANTS += ["lm-eval, batch 1", "lm-eval, batch 16"]
REFERENCE = "reference"


def sample(n_texts: int, shortest: int, longest: int) -> TextSet:
    """Texts of all lengths between these."""
    texts = build_texts("benchmark", pocket_corpus(), n_texts, max_bytes=longest, min_bytes=longest - 1).texts or ()
    lengths = np.random.default_rng(0).integers(shortest, longest, len(texts), endpoint=True)
    cut = (text.encode()[:length].decode(errors="ignore") for text, length in zip(texts, lengths, strict=True))
    return TextSet.from_texts("benchmark", list(cut))


def save_model(directory: Path, shape: str, documents: Sequence[str]) -> None:
    """A GPT-NeoX model with random weights, and a tokenizer: bytes, or byte pairs learnt from the documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

    settings = SHAPES[shape]._asdict()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(settings["vocab_size"], 50254),
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    # The harness puts this token in front of every text: so does klscale then, and both score the same tokens.
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>", pad_token="<s>")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        **settings, intermediate_size=4 * settings["hidden_size"], rotary_pct=0.25, max_position_embeddings=2048
    )
    with quiet_transformers():
        GPTNeoXForCausalLM(config).save_pretrained(directory)
        wrapped.save_pretrained(directory)


# ------------------------------------------------------------------------------------------------- the contestants


def klscale_engine(loaded: Any, texts: TextSet, device: str) -> Callable[[], Any]:
    def work() -> Any:
        values = np.empty(len(texts))
        for block in Engine(loaded, device=device).score(tokenize(loaded.tokenizer, texts), range(len(texts))):
            values[block.text] = block.log_likelihood
        return values

    return work


def plain_loop(loaded: Any, texts: TextSet, device: str) -> Callable[[], Any]:
    def work() -> Any:
        values = []
        for text in texts.texts or ():
            ids = loaded.tokenizer(text, return_tensors="pt").input_ids.to(device)
            values.append(-loaded.model(ids, labels=ids).loss.item() * (ids.shape[1] - 1))
        return np.array(values)

    return work


def harness(loaded: Any, texts: TextSet, device: str, batch: int) -> Callable[[], Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.disable(logging.WARNING)
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch, add_bos_token=False)
    requests = [
        Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=n)
        for n, text in enumerate(texts.texts or ())
    ]
    return lambda: np.array(model.loglikelihood_rolling(requests, disable_tqdm=True))


def limit(loaded: Any, texts: TextSet, device: str) -> Callable[[], Any]:
    tokens, budget = tokenize(loaded.tokenizer, texts), Engine(loaded, device=device).batch_tokens
    tiles = loaded.model.get_output_embeddings().weight.split(VOCABULARY if device == "cpu" else 4 * VOCABULARY)
    order = np.argsort(-tokens.lengths)

    def batches(size: int) -> Iterator[torch.Tensor]:
        start, left = 0, np.empty(0, np.int32)
        while start < len(order):
            part = order[start : start + max(1, size // int(tokens.lengths[order[start]]))]
            ids = np.concatenate([*(tokens.of(s) for s in part), left])
            width, start = len(ids) // len(part), start + len(part)
            ids, left = ids[: width * len(part)], ids[width * len(part) :]
            yield torch.from_numpy(ids).long().view(len(part), width).to(device)

    @torch.inference_mode()
    def read(ids: torch.Tensor) -> None:
        hidden = loaded.model.base_model(ids, use_cache=False).last_hidden_state.flatten(0, 1)
        for rows in hidden.split(TOKENS if device == "cpu" else 4 * TOKENS):
            reduce(torch.logaddexp, (log_sum_exp(widened(rows @ tile.T)) for tile in tiles))

    def seconds(tried: Sequence[torch.Tensor]) -> float:
        clock = clock_of(device)
        finish(device)
        begin = clock()
        with streams(n_streams() if device == "cpu" else 1) as start:
            for wait in [start(read, ids) for ids in tried]:
                wait()
        finish(device)
        return clock() - begin

    best: list[Sequence[torch.Tensor]] = []

    def work() -> None:
        if best:
            seconds(best[0])
        else:
            best.append(min(([*batches(size)] for size in (budget, budget // 2, budget // 4)), key=seconds))

    return work


def reference(loaded: Any, texts: TextSet, device: str) -> Callable[[], Any]:
    """The reference, not timed: float64 from the hidden states on."""

    def work() -> Any:
        weight = loaded.model.get_output_embeddings().weight.double()
        values = []
        for text in texts.texts or ():
            ids = loaded.tokenizer(text, return_tensors="pt").input_ids.to(device)
            hidden = loaded.model.base_model(ids, use_cache=False).last_hidden_state[0, :-1].double()
            logits = hidden @ weight.T
            values.append((logits.gather(1, ids[0, 1:, None])[:, 0] - logits.logsumexp(1)).sum().item())
        return np.array(values)

    return work


# --------------------------------------------------------------------------------------------------- one contestant


def as_loaded_by_transformers(model: Any) -> None:
    """Give a model torch's own linear layers again."""
    for layer in model.modules():
        if type(layer) is products.Linear:
            layer.__class__ = torch.nn.Linear


def finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def clock_of(device: str) -> Callable[[], float]:
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def memory(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process in GB, on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field)) / 1e6


def forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    elif (file := Path("/proc/self/clear_refs")).exists():
        file.write_text("5")


def contestant(pipe: Any, name: str, ref: str, dtype: str, texts: TextSet, device: str) -> None:
    """A process: it loads the model, then runs one round for every message, and answers (seconds, GB, values)."""
    loaded = load(resolve(replace(ModelRef.parse(ref), dtype=dtype)))
    loaded.model.to(device)
    if name != KLSCALE:
        as_loaded_by_transformers(loaded.model)
    make: dict[str, Callable[..., Callable[[], Any]]] = {
        KLSCALE: klscale_engine,
        "plain loop": plain_loop,
        REFERENCE: reference,
        LIMIT: limit,
        "lm-eval, batch 1": lambda *a: harness(*a, batch=1),
        "lm-eval, batch 16": lambda *a: harness(*a, batch=16),
    }
    with torch.inference_mode(), Path(os.devnull).open("w") as nowhere:
        sys.stderr = nowhere
        work = make[name](loaded, texts, device)
        work_once = loaded.model(torch.zeros((1, 8), dtype=torch.long, device=device))  # libraries are set up
        del work_once
        gc.collect()
        forget_peak(device)
        before = memory("VmRSS") if device == "cpu" else torch.cuda.memory_allocated() / 1e9
        clock = clock_of(device)
        pipe.send("ready")
        while pipe.recv():
            finish(device)
            start = clock()
            values = work()
            finish(device)
            seconds = clock() - start
            peak = memory("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9
            pipe.send((seconds, max(peak - before, 0.0), values))


# ------------------------------------------------------------------------------------------------------- the rounds


def measure(
    ref: str, dtype: str, texts: TextSet, device: str, rounds: int, contestants: Sequence[str]
) -> dict[str, Any]:
    """Name -> (seconds of each round, GB, values). The first round warms up and is not counted. A contestant that the
    machine kills, for want of memory, is left out."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Any] = {}
    results: dict[str, Any] = {}
    workers = []
    for name in (REFERENCE, *contestants):
        pipe, far = context.Pipe()
        workers.append(context.Process(target=contestant, args=(far, name, ref, dtype, texts, device)))
        workers[-1].start()
        far.close()
        pipe.recv()
        if name == REFERENCE:
            pipe.send(True)
            results[name] = pipe.recv()
            pipe.send(False)
        else:
            pipes[name] = pipe
            results[name] = ([], 0.0, None)
    for number in range(rounds + 1):
        for name, pipe in list(pipes.items()):
            try:
                pipe.send(True)
                seconds, gigabytes, values = pipe.recv()
            except (EOFError, OSError):
                print(f"  round {number} {name:20s} was killed", file=sys.stderr, flush=True)
                del pipes[name], results[name]
                continue
            kept, most, _ = results[name]
            results[name] = ([*kept, seconds] if number else kept, max(most, gigabytes), values)
            print(f"  round {number} {name:20s} {seconds:7.2f} s", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for worker in workers:
        worker.join()
    return results


def spread(values: Sequence[float], form: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def rows_of(results: dict[str, Any], n_texts: int, contestants: Sequence[str]) -> list[list[str]]:
    exact = results[REFERENCE][2]
    limits = results[LIMIT][0]
    rows = [["limit", spread([n_texts / s for s in limits], ".1f"), "1", "", ""]]
    for name in contestants:
        if name == LIMIT:
            continue
        if name not in results:
            rows.append([name, "killed: too little memory", "", "", ""])
            continue
        seconds, gigabytes, values = results[name]
        share = [fastest / s for fastest, s in zip(limits, seconds, strict=True)]
        rows.append(
            [name, spread([n_texts / s for s in seconds], ".1f"), spread(share, ".2f"), f"{gigabytes:.2f}",
             f"{np.abs(values - exact).max():.2g}"]
        )  # fmt: skip
    return rows


def matrix_rate(device: str, dtype: str) -> float:
    """Measured floating-point operations a second of a large matrix product."""
    size = 8192 if device != "cpu" else 2048
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    times, clock = [], clock_of(device)
    for _ in range(8):
        finish(device)
        start = clock()
        a @ a
        finish(device)
        times.append(clock() - start)
    return 2 * size**3 / min(times)


def operations(ref: str, texts: TextSet) -> float:
    """Floating-point operations of the matrix products of one round, attention included."""
    loaded = load(resolve(ModelRef.parse(ref)))
    lengths, config = tokenize(loaded.tokenizer, texts).lengths.astype(float), loaded.model.config
    products = sum(module.weight.numel() for module in loaded.model.modules() if isinstance(module, torch.nn.Linear))
    attention = 4 * config.num_hidden_layers * config.hidden_size
    return float(2 * products * lengths.sum() + attention * (lengths**2).sum() / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=48)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", default=None, help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--models", nargs="+", metavar="REF", default=[], help="instead of shapes")
    parser.add_argument("--bytes", nargs=2, type=int, metavar=("SHORTEST", "LONGEST"), default=(1024, 1024))
    parser.add_argument(
        "--contestants", nargs="+", default=CONTESTANTS, choices=CONTESTANTS, help=f"beside {KLSCALE} and {LIMIT}"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, help="write the table here")
    options = parser.parse_args()
    device = options.device
    contestants = [name for name in CONTESTANTS if name in (KLSCALE, LIMIT, *options.contestants)]
    shapes = options.shapes or [shape for shape in SHAPES if device != "cpu" or not shape.startswith("1B")]
    texts = sample(options.texts, *options.bytes)
    documents = [text for _, text, _ in pocket_corpus()]
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("klscale", "torch", "transformers", "lm_eval") if find_spec(name)
    )
    machine = (
        f"{torch.get_num_threads()} thread(s) of {cpu_name()}"
        if device == "cpu"
        else torch.cuda.get_device_name(device)
    )
    lines = [
        "# Scoring: speed and memory",
        "",
        f"{machine}; Python {platform.python_version()}, {packages}. {len(texts)} texts of",
        f"{texts.mean_bytes:.0f} bytes in the mean; median of {options.rounds} interleaved rounds (lowest to highest).",
        "What is measured and how: `benchmarks/scoring.py`, which wrote this table.",
    ]
    for shape in options.models or shapes:
        with tempfile.TemporaryDirectory() as directory:
            if not options.models:
                save_model(Path(directory), shape, documents)
            ref, name = (shape, Path(shape).name) if options.models else (str(ModelRef(directory)), shape)
            work = operations(ref, texts)
            for dtype in options.dtypes:
                print(f"{name}, {dtype}", file=sys.stderr, flush=True)
                results = measure(ref, dtype, texts, device, options.rounds, contestants)
                rate = matrix_rate(device, dtype)
                reached = work / statistics.median(results[KLSCALE][0]) / rate
                lines += ["", f"## {name}, {dtype}", ""]
                table = ["| | texts/s | of the limit | memory above weights, GB | error, nats a text |"]
                table += ["|---|---|---|---|---|"]
                table += [f"| {' | '.join(row)} |" for row in rows_of(results, len(texts), contestants)]
                table += ["", f"klscale reaches {reached:.0%} of the measured rate of a large matrix product"]
                table[-1] += f" ({rate / 1e12:.2f} TFLOP/s)."
                lines += table
                print("\n".join(table), flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
