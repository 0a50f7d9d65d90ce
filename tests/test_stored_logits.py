"""Files of llama.cpp's stored log-probabilities, as a writer of our own by its format makes them, against plain loops
in float64."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch

import klscale
from klscale.errors import InputError
from klscale.inputs.references import ModelRef
from klscale.inputs.stored_logits import read_stored_logits
from klscale.sources.mock import Chain, Parameters

CHUNK = 32


def write(path, chunks, logits_of, n_vocabulary, magic=b"_logits_"):
    """The format as llama.cpp writes it, by a loop over rows: `logits_of` a chunk gives (n, V)."""
    width = 2 * ((n_vocabulary + 1) // 2) + 4
    with path.open("wb") as file:
        file.write(magic + struct.pack("<3i", chunks.shape[1], n_vocabulary, len(chunks)))
        file.write(chunks.astype("<i4").tobytes())
        for chunk in chunks:
            for row in logits_of(chunk)[chunks.shape[1] // 2 : -1].astype(np.float32):
                top = row.max()
                low = max(row.min(), top - np.float32(16))
                log_sum = np.float32(np.log(np.exp(row.astype(np.float64) - top).sum()))
                scale = np.float32((top - low) / np.float32(65535))
                codes = np.zeros(width, dtype="<u2")
                codes[:4] = np.array([scale, low - top - log_sum], dtype="<f4").view("<u2")
                codes[4 : 4 + n_vocabulary] = np.where(row > low, np.rint((row - low) / scale), 0)
                file.write(codes.tobytes())
    return path


def log_p(ref):
    return Chain.of(Parameters.of(ModelRef.parse(ref))).log_p


@pytest.fixture
def stored(tmp_path):
    """Six chunks of bytes, as mock://1 sees them."""
    chunks = np.random.default_rng(0).integers(97, 122, size=(6, CHUNK)).astype(np.int32)
    base = log_p("mock://1")
    return write(tmp_path / "base.kld", chunks, lambda chunk: base[chunk] + 3.0, 256), chunks


def loop(chunks, ref):
    """KL(mock://1, ref) at each scored position of each chunk, and the loss that is more."""
    p, q = log_p("mock://1"), log_p(ref)
    kl, more = [], []
    for chunk in chunks:
        before, after = chunk[CHUNK // 2 : -1], chunk[CHUNK // 2 + 1 :]
        kl.append([(np.exp(p[b]) * (p[b] - q[b])).sum() for b in before])
        more.append([p[b, a] - q[b, a] for b, a in zip(before, after, strict=True)])
    return np.array(kl), np.array(more)


def test_rows_are_read_as_they_were_written(stored):
    file, chunks = stored
    found = read_stored_logits(file)
    assert (found.tokens == chunks).all()
    assert (found.n_positions, found.n_vocabulary) == (CHUNK - 1 - CHUNK // 2, 256)
    for n in (0, 5):
        rows, expected = found.log_probabilities(n), log_p("mock://1")[chunks[n, CHUNK // 2 : -1]]
        near = expected > expected.max(axis=1, keepdims=True) - 15.9
        assert np.abs(rows - expected)[near].max() < 16 / 65535


def test_kl_is_that_of_a_loop(stored, run):
    file, chunks = stored
    kl, more = loop(chunks, "mock://1?shift=0.3")
    found = json.loads(run("kld", file, "mock://1?shift=0.3", "mock://1", "--json").stdout)["models"]
    exact = found[0]["exact"]
    assert exact["mean"]["value"] == pytest.approx(kl.mean(), rel=2e-3)
    assert exact["maximum"] == pytest.approx(kl.max(), rel=1e-2)
    assert exact["forward"]["value"] == pytest.approx(kl.mean() / np.log(2), rel=2e-3)  # a token is a byte
    assert found[0]["difference"]["value"] == pytest.approx(more.mean(), abs=1e-4)
    error = np.std(more.mean(axis=1)) / np.sqrt(len(chunks))
    assert found[0]["difference"]["standard_error"] == pytest.approx(error, rel=1e-2)
    assert found[1]["exact"]["mean"]["value"] < 1e-4
    assert found[1]["exact"]["same_top"]["value"] == 1
    shown = run("kld", file.name, "mock://1?shift=0.3", "--chunks", "2").stdout
    assert "2 chunks, 30 positions" in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("bos", [False, True])
def test_models_of_transformers(make_model, tmp_path, bos):
    """A chunk begins with the BOS token, where the first of the file does: it is kept of that alone."""
    from transformers import AutoModelForCausalLM

    places = [make_model(name, seed=seed) for seed, name in enumerate("ab")]
    a, b = (AutoModelForCausalLM.from_pretrained(place).eval() for place in places)
    chunks = np.random.default_rng(1).integers(0, 255, size=(3, CHUNK)).astype(np.int32)
    if bos:
        chunks[0, 0] = 256

    def logits(model, chunk):
        ids = torch.from_numpy(chunk.astype(np.int64))[None]
        if bos:
            ids[0, 0] = 256
        with torch.no_grad():
            return model(ids).logits[0].double().numpy()

    file = write(tmp_path / "x.kld", chunks, lambda chunk: logits(a, chunk), 300)
    found = klscale.kld(file, [str(places[1])]).found[0]
    expected, more = [], []
    for chunk in chunks:
        p, q = (torch.from_numpy(logits(model, chunk)).log_softmax(1)[CHUNK // 2 : -1] for model in (a, b))
        expected += (p.exp() * (p - q)).sum(1).tolist()
        after = torch.from_numpy(chunk[CHUNK // 2 + 1 :].astype(np.int64))[:, None]
        more += (p - q).gather(1, after)[:, 0].tolist()
    assert found.figures.mean.value == pytest.approx(np.mean(expected), rel=1e-3)
    assert found.difference.value == pytest.approx(np.mean(more), abs=1e-3)


def test_other_vocabularies_are_refused(stored, run, tmp_path):
    file, chunks = stored
    base = log_p("mock://1")
    wide = np.concatenate([base, np.full((257, 44), -2.0)], axis=1)
    write(tmp_path / "wide.kld", chunks, lambda chunk: wide[chunk], 300)
    assert "same vocabulary" in run("kld", "wide.kld", "mock://1", status=2).stderr
    write(tmp_path / "ids.kld", chunks + 170, lambda chunk: wide[chunk - 170], 300)
    assert "another tokenizer" in run("kld", "ids.kld", "mock://1", status=2).stderr
    assert "window" in run("kld", file, "mock://1?window=16", status=2).stderr
    assert "no next-token" in run("kld", file, "llamacpp://x.gguf", status=2).stderr


def test_broken_files(stored, run, tmp_path):
    file, _ = stored
    data = file.read_bytes()
    head = len(data) - 6 * (CHUNK - 1 - CHUNK // 2) * 260 * 2
    broken = {
        "empty": b"", "short": data[:15], "magic": b"_logitz_" + data[8:], "cut": data[:-1], "long": data + b"\0",
        "chunks": data[:16] + struct.pack("<i", 2**31 - 1) + data[20:],
        "negative": data[:8] + struct.pack("<3i", -5, -5, -5) + data[20:],
        "ids": data[:20] + struct.pack("<i", -1) + data[24:],
        "scale": data[:head] + struct.pack("<2f", np.nan, 0) + data[head + 8 :],
        "sum": data[:head] + struct.pack("<2f", 0.0, -1.0) + data[head + 8 :],
    }  # fmt: skip
    for name, content in broken.items():
        (tmp_path / f"{name}.kld").write_bytes(content)
        assert "Error" in run("kld", f"{name}.kld", "mock://1", status=2).stderr, name
    run("kld", "none.kld", "mock://1", status=2)
    with pytest.raises(InputError, match="cannot be read"):
        read_stored_logits(tmp_path)
