"""Distances between parameters: against naive float64 loops, streamed within bounds, and clear about bad files."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from klscale.errors import InputError, KlscaleError
from klscale.science import weights
from klscale.science.weights import CHUNK, count_parameters, distances_to, squared_distances

SHAPES = {"embed": (300, 128), "norm": (128,), "block.up": (512, 128), "block.bias": (512,), "block.down": (128, 512)}
N_PARAMETERS = sum(int(np.prod(shape)) for shape in SHAPES.values())
"""Five chunks and a rest, so that pieces of tensors and tensors share chunks."""


def tensors_of(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def run_of(n: int, step: float = 1e-2) -> list[dict[str, torch.Tensor]]:
    """A random walk."""
    run = [tensors_of(0)]
    for t in range(1, n):
        change = tensors_of(t)
        run.append({name: value + step * change[name] for name, value in run[-1].items()})
    return run


def save(path: Path, tensors: Mapping[str, torch.Tensor]) -> list[Path]:
    save_file({name: value.clone() for name, value in tensors.items()}, path)
    return [path]


def save_all(directory: Path, run: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, list[Path]]:
    return {f"step{t}": save(directory / f"{t}.safetensors", tensors) for t, tensors in enumerate(run)}


def naive(a: Sequence[Path], b: Sequence[Path], tied: Sequence[str] = ()) -> float:
    """Both checkpoints as torch reads them, one tensor after the other, in float64."""
    mine, theirs = ({k: v for path in files for k, v in load_file(path).items()} for files in (a, b))
    assert mine.keys() == theirs.keys()
    return sum(
        float(((mine[name].double() - theirs[name].double()) ** 2).sum())
        for name in mine
        if mine[name].is_floating_point() and name not in tied
    )


def assert_all_pairs(checkpoints: Mapping[str, Sequence[Path]], tied: Sequence[str] = (), rtol: float = 1e-12) -> None:
    found = squared_distances(checkpoints)
    assert not found.problems
    assert found.names == tuple(checkpoints)
    assert found.squared_distance.dtype == np.float64
    np.testing.assert_array_equal(found.squared_distance, found.squared_distance.T)
    np.testing.assert_array_equal(np.diag(found.squared_distance), 0)
    for (i, a), (j, b) in combinations(enumerate(checkpoints.values()), 2):
        assert found.squared_distance[i, j] == pytest.approx(naive(a, b, tied), rel=rtol, abs=0)


# -------------------------------------------------------------------------------------------------------- the numbers


def test_all_pairs_are_those_of_a_naive_loop(tmp_path):
    checkpoints = save_all(tmp_path, run_of(6))
    assert_all_pairs(checkpoints)
    assert squared_distances(checkpoints).n_parameters == N_PARAMETERS
    assert count_parameters(checkpoints["step3"]) == N_PARAMETERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_and_any_mix_is_widened(dtype, tmp_path):
    run = [{name: value.to(dtype) for name, value in tensors.items()} for tensors in run_of(3)] + [tensors_of(9)]
    run[1]["norm"] = run[1]["norm"].float()
    assert_all_pairs(save_all(tmp_path, run))


def test_parts_of_a_checkpoint_may_be_cut_anywhere(tmp_path):
    whole, other = run_of(2)
    names = list(SHAPES)
    parts = []
    for n, part in enumerate((names[3:], names[:1], names[1:3])):
        parts += save(tmp_path / f"model-{n}.safetensors", {name: whole[name] for name in part})
    checkpoints = {"a": parts, "b": save(tmp_path / "b.safetensors", other)}
    assert_all_pairs(checkpoints)
    assert distances_to(parts, {"whole": save(tmp_path / "a.safetensors", whole)}) == {"whole": 0.0}


@pytest.mark.parametrize("sizes", [[1e4, 1, 1e-3, 1e-7, 1e-7, 1e-7], [1e-7, 1e-7, 1e4, 1e-7, 1e-7]])
def test_tiny_steps_beside_huge_ones_keep_their_digits(sizes, tmp_path):
    """In float64 files, where a step of 1e-7 of the weights has nine digits, after a first one of 1e4 of them."""
    run = [tensors_of(0, torch.float64)]
    for t, size in enumerate(sizes):
        change = tensors_of(t + 1, torch.float64)
        run.append({name: value * (1 + size * change[name] / 10) for name, value in run[-1].items()})
    assert_all_pairs(save_all(tmp_path, run), rtol=1e-9)


def test_a_pair_is_exact_however_far_the_way_between_it(tmp_path):
    """There and back: a block sum of squares of 1e10 would leave nothing of the 1e-8 between first and last."""
    start, far = tensors_of(0, torch.float64), tensors_of(1, torch.float64)
    run = [
        start,
        {name: 1e3 * value for name, value in far.items()},
        {name: value + 1e-7 * far[name] for name, value in start.items()},
        {name: 1e2 * value for name, value in far.items()},
        start,
    ]
    checkpoints = save_all(tmp_path, run)
    assert_all_pairs(checkpoints, rtol=1e-9)
    assert squared_distances(checkpoints).squared_distance[0, 4] == 0.0


def test_one_checkpoint_to_others_is_the_row_of_all_pairs(tmp_path):
    checkpoints = save_all(tmp_path, run_of(4))
    others = {name: checkpoints[name] for name in ("step2", "step0", "step3")}
    found = distances_to(checkpoints["step1"], others)
    assert list(found) == list(others)
    for name, value in found.items():
        assert value == pytest.approx(naive(checkpoints["step1"], others[name]), rel=1e-13)
    assert distances_to(checkpoints["step1"], {}) == {}


def test_tensors_that_hold_no_numbers_are_left_out(tmp_path):
    run = run_of(3)
    for t, tensors in enumerate(run):
        tensors["mask"] = torch.ones(64, 64, dtype=torch.bool)
        tensors["count"] = torch.tensor([t * 1000])
        tensors["frequencies"] = torch.linspace(1, 2, 16)
        tensors["empty"] = torch.zeros(0, 7)
    checkpoints = save_all(tmp_path, run)
    assert_all_pairs(checkpoints)
    assert squared_distances(checkpoints).n_parameters == N_PARAMETERS + 16


def test_tied_tensors_count_once(tmp_path):
    run = run_of(3)
    for tensors in run:
        tensors["lm_head"] = tensors["embed"].clone()
    checkpoints = save_all(tmp_path, run)
    assert_all_pairs(checkpoints, tied=["lm_head"])
    assert squared_distances(checkpoints).n_parameters == N_PARAMETERS == count_parameters(checkpoints["step1"])
    assert distances_to(checkpoints["step0"], {"b": checkpoints["step2"]})["b"] == pytest.approx(
        naive(checkpoints["step0"], checkpoints["step2"], tied=["lm_head"])
    )


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("place", [0, -1])
def test_tensors_that_differ_in_one_number_of_one_checkpoint_are_not_tied(where, place, tmp_path):
    run = run_of(3)
    for tensors in run:
        tensors["lm_head"] = tensors["embed"].clone()
    run[where]["lm_head"].view(-1)[place] += 1
    checkpoints = save_all(tmp_path, run)
    assert_all_pairs(checkpoints)
    assert squared_distances(checkpoints).n_parameters == N_PARAMETERS + 300 * 128


def test_matrices_that_are_constant_are_not_tied(tmp_path):
    """As before training, in the first and the last of these checkpoints."""
    run = run_of(3)
    for t, tensors in enumerate(run):
        for name in ("gate", "other.gate"):
            tensors[name] = torch.full((8, 16), 2.0 if t == 1 else 1.0)
    checkpoints = save_all(tmp_path, run)
    assert_all_pairs(checkpoints)
    assert {count_parameters(files) for files in checkpoints.values()} == {N_PARAMETERS + 256}


def test_equal_vectors_are_parameters_of_their_own(tmp_path):
    """The output biases of attention and MLP in a GPT-NeoX block have one gradient, and stay equal."""
    run = run_of(3)
    for tensors in run:
        tensors["attention.bias"] = tensors["block.bias"].clone()
    checkpoints = save_all(tmp_path, run)
    assert_all_pairs(checkpoints)
    assert squared_distances(checkpoints).n_parameters == N_PARAMETERS + 512


# ---------------------------------------------------------------------------------------------------------- streaming


def test_memory_is_a_chunk_of_each_checkpoint_and_every_file_is_read_once(tmp_path, monkeypatch):
    """Four checkpoints of a million parameters, 16 MB: within three chunks of each."""
    run = [{"a": torch.randn(1000, 1000), "b": torch.randn(10, 100), "c": torch.randn(10, 100)} for _ in range(4)]
    checkpoints = save_all(tmp_path, run)
    n_read, stored = 0, weights._Tensor.stored

    def counting(self, start, stop):
        nonlocal n_read
        found = stored(self, start, stop)
        n_read += found.nbytes
        return found

    monkeypatch.setattr(weights._Tensor, "stored", counting)
    squared_distances(checkpoints)  # what is imported on the way is no part of it
    n_read = 0
    tracemalloc.start()
    squared_distances(checkpoints)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 4 * CHUNK * 8
    size = 4 * 4 * (1000 * 1000 + 2000)
    beginnings = 2 * 1000 * 4  # of b and c, which could have been tied
    assert size <= n_read <= size + beginnings


def test_more_files_than_may_be_open(tmp_path):
    """40 checkpoints of two files each, in a process that may have 24 files open."""
    pytest.importorskip("resource")
    for t in range(40):
        for part in "ab":
            save(tmp_path / f"{t}{part}.safetensors", {part: torch.full((10,), float(t))})
    program = f"""
import resource
from pathlib import Path
from klscale.science.weights import squared_distances
resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))
folder = Path({str(tmp_path)!r})
found = squared_distances({{str(t): [folder / f"{{t}}{{part}}.safetensors" for part in "ab"] for t in range(40)}})
assert not found.problems, found.problems
print(found.squared_distance[0, 39])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == 20 * 39**2


def test_no_torch_is_imported():
    program = "import klscale.science.weights, sys; assert not {'torch', 'transformers'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------- bad input


def raw(path: Path, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BAD = {
    "missing": (lambda path: path.unlink(), "cannot be read.\nNo such file"),
    "a directory": (lambda path: (path.unlink(), path.mkdir()), "cannot be read.\nIs a directory"),
    "empty": (lambda path: path.write_bytes(b""), "not a whole safetensors file"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "not a whole safetensors file"),
    "too long": (lambda path: path.write_bytes(path.read_bytes() + b"12345678"), "not a whole safetensors file"),
    "no JSON": (lambda path: raw(path, b"{{{{{{{{"), "not a whole safetensors file"),
    "a list": (lambda path: raw(path, b"[1, 2, 3]"), "not a whole safetensors file"),
    "huge header": (lambda path: path.write_bytes(b"\xff" * 64), "not a whole safetensors file"),
    "beyond the file": (
        lambda path: raw(path, json.dumps({"a": entry("F32", [8], 0, 32)}).encode(), b"0" * 8),
        "not a whole safetensors file",
    ),
    "overlap": (
        lambda path: raw(
            path, json.dumps({"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 8, 24)}).encode(), b"0" * 24
        ),
        "not a whole safetensors file",
    ),
    "shape and size": (
        lambda path: raw(path, json.dumps({"a": entry("F32", [5], 0, 16)}).encode(), b"0" * 16),
        "not a whole safetensors file",
    ),
    "float8": (
        lambda path: raw(path, json.dumps({"a": entry("F8_E4M3", [16], 0, 16)}).encode(), b"0" * 16),
        "a is of dtype F8_E4M3",
    ),
    "unheard-of dtype": (
        lambda path: raw(path, json.dumps({"a": entry("Q7", [16], 0, 16)}).encode(), b"0" * 16),
        "unknown variant `Q7`",
    ),
    "integers only": (
        lambda path: raw(path, json.dumps({"a": entry("I8", [16], 0, 16)}).encode(), b"0" * 16),
        "holds no weights",
    ),
    "not a number": (
        lambda path: save_file(tensors_of(2) | {"block.down": torch.full((128, 512), torch.nan)}, path),
        "block.down holds values that are not finite",
    ),
    "both infinities": (
        lambda path: save_file(tensors_of(2) | {"norm": torch.tensor([torch.inf, -torch.inf]).repeat(64)}, path),
        "norm holds values that are not finite",
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [0, 1, 3])
@pytest.mark.parametrize("damage", BAD)
def test_a_bad_file_is_named_and_the_rest_is_compared(damage, bad, tmp_path):
    checkpoints = save_all(tmp_path, run_of(4))
    spoil, said = BAD[damage]
    (path,) = checkpoints[f"step{bad}"]
    spoil(path)
    found = squared_distances(checkpoints)
    assert list(found.problems) == [f"step{bad}"]
    error = found.problems[f"step{bad}"]
    assert str(path) in error.what
    assert said in str(error)
    assert error.remedy
    good = {name: files for name, files in checkpoints.items() if name != f"step{bad}"}
    assert found.names == tuple(good)
    for (i, a), (j, b) in combinations(enumerate(good.values()), 2):
        assert found.squared_distance[i, j] == pytest.approx(naive(a, b), rel=1e-12)
    assert found.n_parameters == N_PARAMETERS
    for new, others in (
        (checkpoints[f"step{bad}"], good),
        (checkpoints["step2"], {"bad": checkpoints[f"step{bad}"]}),
    ):
        with pytest.raises(KlscaleError) as caught:
            distances_to(new, others)
        assert str(path) in caught.value.what


def test_a_file_that_is_lost_while_it_is_read_is_a_problem_of_its_own(tmp_path, monkeypatch):
    checkpoints = save_all(tmp_path, run_of(4))
    fill, n_filled = weights._fill, 0

    def cut(row, tensors, chunk):
        nonlocal n_filled
        n_filled += 1
        if n_filled == 10:  # the third chunk of the second checkpoint
            (path,) = checkpoints["step1"]
            path.write_bytes(path.read_bytes()[:3000])
        fill(row, tensors, chunk)

    monkeypatch.setattr(weights, "_fill", cut)
    found = squared_distances(checkpoints)
    assert found.names == ("step0", "step2", "step3")
    assert "became shorter" in str(found.problems["step1"])
    assert found.squared_distance[0, 1] == pytest.approx(naive(checkpoints["step0"], checkpoints["step2"]), rel=1e-12)


def test_nothing_usable_gives_nothing_but_problems(tmp_path):
    found = squared_distances({"a": [tmp_path / "a.safetensors"], "b": []})
    assert (found.names, found.squared_distance.shape, found.n_parameters) == ((), (0, 0), 0)
    assert list(found.problems) == ["a", "b"]
    only = save(tmp_path / "only.safetensors", {"norm": torch.full((8,), torch.inf)})
    assert list(squared_distances({"only": only}).problems) == ["only"]
    assert squared_distances({}).names == ()
    fine = squared_distances({"fine": save(tmp_path / "fine.safetensors", tensors_of(0))})
    assert (fine.names, fine.squared_distance.tolist(), fine.n_parameters) == (("fine",), [[0.0]], N_PARAMETERS)


def test_a_changed_vocabulary_is_a_problem_and_most_checkpoints_count(tmp_path):
    run = run_of(5)
    run[1]["embed"] = run[1]["embed"][:-1]
    del run[4]["norm"]
    checkpoints = save_all(tmp_path, run)
    found = squared_distances(checkpoints)
    assert found.names == ("step0", "step2", "step3")
    assert found.squared_distance[0, 2] == pytest.approx(naive(checkpoints["step0"], checkpoints["step3"]), rel=1e-12)
    vocabulary, missing = found.problems["step1"], found.problems["step4"]
    assert "step1 have other shapes than those of step3: embed is (299, 128), there it is (300, 128)" in vocabulary.what
    assert "norm is missing, there it is (128,)" in missing.what
    assert "permutations of their units" in vocabulary.why
    with pytest.raises(KlscaleError, match="other shapes"):
        distances_to(checkpoints["step0"], {"step2": checkpoints["step2"], "step1": checkpoints["step1"]})


def test_of_two_shapes_that_are_equally_many_the_later_counts(tmp_path):
    run = run_of(4)
    for tensors in run[:2]:
        tensors["embed"] = tensors["embed"][:-1]
    assert squared_distances(save_all(tmp_path, run)).names == ("step2", "step3")


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors_of(0), path)
    with pytest.raises(InputError, match="save_pretrained") as caught:
        count_parameters([path])
    assert str(path) in caught.value.what
    assert isinstance(squared_distances({"a": [path]}).problems["a"], InputError)


def test_a_tensor_in_two_files_of_a_checkpoint_is_refused(tmp_path):
    a, b = (save(tmp_path / f"{name}.safetensors", tensors_of(0))[0] for name in "ab")
    with pytest.raises(InputError, match=r"b\.safetensors: \S+ is also in .*a\.safetensors"):
        count_parameters([a, b])


def test_progress_reaches_its_end(tmp_path):
    from klscale.progress import Progress

    class Counting(Progress):
        def begin(self, what, total=None, unit=""):
            super().begin(what, total, unit)
            self.total = total

    progress = Counting()
    squared_distances(save_all(tmp_path, run_of(3)), progress=progress)
    assert progress.done == pytest.approx(progress.total)
    assert progress.total == pytest.approx(3 * N_PARAMETERS / 1e6)
