"""Weights on disk: what opens, what is refused and how it is said, and that saving is all or nothing."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from flowloom.errors import DiskFullError, WeightsError
from flowloom.models.weights import assign_weights, open_weights, save_weights

CPU = torch.device("cpu")
TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "odd": torch.randn(3).to(torch.float8_e4m3fn),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "strided": torch.randn(4, 6).T,
    "ids": torch.tensor([3, -1]),
    "flags": torch.tensor([True, False, True]),
}


class Marker:
    """Pickles as a call that makes a folder: what a hostile checkpoint does, but worse."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def equal(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name].double(), tensor.double())
        for name, tensor in expected.items()
    )


def test_saved_weights_are_read_by_us_and_by_safetensors(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, TENSORS, {"title": "größer"})
    weights = open_weights(path)
    assert equal(dict(weights), TENSORS)
    assert equal(safetensors.torch.load_file(path), TENSORS)
    assert weights.metadata == {"title": "größer"}
    assert weights.shapes["strided"] == (6, 4)
    assert weights.dtypes["odd"] == torch.float8_e4m3fn
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".sft", ".pth", ".pt", ".ckpt"])
def test_every_kind_of_file_opens(tmp_path: Path, suffix: str):
    path = tmp_path / f"w{suffix}"
    if suffix in (".safetensors", ".sft"):
        safetensors.torch.save_file({"a": TENSORS["a"]}, path)
    else:
        torch.save({"state_dict": {"a": nn.Parameter(TENSORS["a"])}, "epoch": 3}, path)
    weights = open_weights(path)
    assert equal(dict(weights), {"a": TENSORS["a"]})
    assert not weights["a"].requires_grad


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path):
    path, made = tmp_path / "evil.pth", tmp_path / "made"
    torch.save({"a": TENSORS["a"], "b": Marker(made)}, path)
    with pytest.raises(WeightsError, match=r"evil.pth: refused.*posix.mkdir.*\.safetensors"):
        open_weights(path)
    assert not made.exists()


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path):
    path, made = tmp_path / "evil.pt", tmp_path / "made"
    path.write_bytes(pickle.dumps(Marker(made)))
    with pytest.raises(WeightsError, match="not a torch file"):
        open_weights(path)
    assert not made.exists()


def test_a_missing_file_names_its_neighbours(tmp_path: Path):
    save_weights(tmp_path / "chroma-hd.safetensors", {"a": TENSORS["a"]}, {})
    for name in ("chroma.safetensors", "chroma.pth"):
        with pytest.raises(WeightsError, match=rf"{name}: no such file.*chroma-hd.safetensors"):
            open_weights(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 5, 100, 0.9])
def test_a_file_that_was_cut_short_is_said_to_be(tmp_path: Path, suffix: str, keep: float):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(TENSORS, path)
    else:
        save_weights(path, TENSORS, {})
    size = path.stat().st_size
    os.truncate(path, int(size * keep) if isinstance(keep, float) else keep)
    with pytest.raises(WeightsError, match=rf"w{suffix}: not a complete weights file.*download it again"):
        open_weights(path)


def test_a_file_of_another_kind_is_named(tmp_path: Path):
    pointer, page, text = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    page.write_text("<!DOCTYPE html><html>not found</html>")
    torch.save([1, 2], text)
    with pytest.raises(WeightsError, match="Git LFS pointer"):
        open_weights(pointer)
    with pytest.raises(WeightsError, match="another format"):
        open_weights(page)
    with pytest.raises(WeightsError, match="no tensors by name"):
        open_weights(text)


def write_shards(folder: Path) -> Path:
    save_weights(folder / "model-1.safetensors", {"a": TENSORS["a"]}, {})
    save_weights(folder / "model-2.safetensors", {"b": TENSORS["b"]}, {})
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    return index


def test_shards_open_by_their_index_or_folder(tmp_path: Path):
    index = write_shards(tmp_path)
    expected = {name: TENSORS[name] for name in "ab"}
    assert equal(dict(open_weights(index)), expected)
    assert equal(dict(open_weights(tmp_path)), expected)
    index.unlink()
    assert equal(dict(open_weights(tmp_path)), expected)


def test_the_index_decides_which_files_of_a_folder_count(tmp_path: Path):
    write_shards(tmp_path)
    save_weights(tmp_path / "consolidated.safetensors", {name: TENSORS[name] for name in "ab"}, {})
    assert len(open_weights(tmp_path)) == 2


def test_two_files_with_the_same_tensor_are_not_guessed_between(tmp_path: Path):
    for name in ("model.fp16.safetensors", "model.safetensors"):
        save_weights(tmp_path / name, {"a": TENSORS["a"]}, {})
    with pytest.raises(WeightsError, match=r"both model.fp16.safetensors and model.safetensors hold a"):
        open_weights(tmp_path)


def test_a_broken_index_is_named(tmp_path: Path):
    index = write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-2.safetensors of 2 shards missing"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}))
    with pytest.raises(WeightsError, match="not a file of this folder"):
        open_weights(index)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="not an index"):
        open_weights(index)


def test_a_folder_without_weights_is_named(tmp_path: Path):
    with pytest.raises(WeightsError, match="holds no weights"):
        open_weights(tmp_path)


def linear(rows: int = 5) -> nn.Linear:
    return nn.Linear(3, rows, device="meta")


def test_assigned_weights_have_the_requested_dtype_and_outlive_the_file(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    tensors = {"weight": torch.randn(5, 3), "bias": torch.randn(5)}
    save_weights(path, tensors, {})
    same, half = linear(), linear()
    assign_weights(same, open_weights(path), CPU, torch.float32)
    assign_weights(half, open_weights(path), CPU, torch.bfloat16)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert equal(same.state_dict(), tensors)
    assert equal(half.state_dict(), {name: tensor.bfloat16() for name, tensor in tensors.items()})
    assert half.weight.requires_grad


def test_names_that_do_not_fit_are_all_listed(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"weight": torch.zeros(4, 3)} | {f"extra{i}": torch.zeros(1) for i in range(9)}, {})
    with pytest.raises(WeightsError) as caught:
        assign_weights(linear(), open_weights(path), CPU, torch.float32)
    message = str(caught.value)
    assert "w.safetensors: does not fit Linear" in message
    assert "1 missing (bias)" in message
    assert "9 unexpected (extra0, extra1, extra2, extra3, ... 5 more)" in message
    assert "weight is (4, 3), not (5, 3)" in message


PEAK = """
import os, sys, threading, time
import torch
from pathlib import Path
from torch import nn
from flowloom.models.weights import assign_weights, open_weights

def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(16)))
before, peak, done = resident_mib(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident_mib())
        time.sleep(0.0005)
watcher = threading.Thread(target=watch)
watcher.start()
assign_weights(model, open_weights(Path(sys.argv[1])), torch.device("cpu"), getattr(torch, sys.argv[2]))
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("dtype", "model_mib"), [("float32", 256), ("bfloat16", 128)])
def test_loading_never_holds_two_copies_of_the_model(tmp_path: Path, dtype: str, model_mib: int):
    path = tmp_path / "w.safetensors"
    save_weights(path, {f"{i}.weight": torch.ones(2048, 2048) for i in range(16)}, {})
    command = [sys.executable, "-c", PEAK, str(path), dtype]
    peak = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # The finished tensors, the one being read (16 MiB) and its copy; a second copy would add all of it.
    assert model_mib * 0.9 < peak < model_mib + 64


def test_a_full_disk_is_reported_and_leaves_the_old_file_complete(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(8)}, {})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"w.safetensors: .* larger .* \(1.0 MiB needed\)"):
            save_weights(path, {"a": torch.zeros(2**18)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_save_that_fails_half_way_leaves_the_old_file_complete(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(8)}, {})
    before = path.read_bytes()
    unreadable = {"a": torch.zeros(4096), "b": torch.zeros(4, device="meta")}
    with pytest.raises(NotImplementedError):
        save_weights(path, unreadable, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_not_called_a_full_disk(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        save_weights(tmp_path / "absent" / "w.safetensors", {"a": torch.zeros(1)}, {})
