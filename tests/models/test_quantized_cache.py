"""Quantized networks on disk: a second start reads these alone, with equal bits, and no damaged one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowloom.locks import hold
from flowloom.models import quantized_cache
from flowloom.models.chroma import load_chroma
from flowloom.models.family import families
from flowloom.models.quantized import QuantizedLoad, form_of, quantize_base
from flowloom.models.quantized_cache import QuantizedCache, key_of
from flowloom.models.weights import Weights, open_weights, save_weights
from flowloom.nn.chroma import ChromaParams
from flowloom.nn.patches import image_ids

CPU = torch.device("cpu")
FORMS = {"float8": ("8bit", "wide"), "int8": ("8bit", "int8"), "nf4": ("4bit", "wide")}
MANY = 2**30


@pytest.fixture
def base(tiny_chroma_path: Path, tmp_path: Path) -> Path:
    """A file of this test's own."""
    path = tmp_path / "base.safetensors"
    path.write_bytes(tiny_chroma_path.read_bytes())
    return path


def loader(form: str, folder: Path, most: int = MANY) -> QuantizedLoad:
    made = form_of(*FORMS[form], CPU)  # pyright: ignore[reportArgumentType]
    assert made is not None
    return QuantizedLoad(made, QuantizedCache(folder, most))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor.view(torch.uint8), theirs[name].view(torch.uint8)), name


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cache's warnings."""
    found: list[str] = []
    monkeypatch.setattr(quantized_cache._log, "warning", lambda text, *parts: found.append(text % parts))
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_the_second_start_reads_the_cache_alone_and_has_equal_bits(
    form: str, dtype: torch.dtype, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    direct = load_chroma(base, CPU, dtype, QuantizedLoad(loader(form, cache).form))
    assert not files(cache)
    first = load_chroma(base, CPU, dtype, loader(form, cache))
    (kept,) = files(cache)
    assert kept.stat().st_size < 0.9 * base.stat().st_size * dtype.itemsize / 4

    def unreadable(self: Weights, name: str) -> Tensor:
        raise AssertionError(f"{name} of the base was read")

    monkeypatch.setattr(Weights, "__getitem__", unreadable)
    second = load_chroma(base, CPU, dtype, loader(form, cache))
    assert_same(state(direct), state(first))
    assert_same(state(first), state(second))
    assert [type(module) for module in first.modules()] == [type(module) for module in second.modules()]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        found = [network(*inputs_for(network)) for network in (first, second)]
    assert torch.equal(*found)


def inputs_for(network: nn.Module) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(7)
    params = cast("ChromaParams", network.params)
    latents = torch.randn(1, 12, params.in_channels, generator=draw)
    text = torch.randn(1, 6, params.context_in_dim, generator=draw)
    return latents, torch.tensor([0.5]), text, image_ids(8, 6)


@pytest.mark.parametrize("form", ["float8", "nf4"])
def test_flux1_is_kept_too(
    form: str, tiny_flux1_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flux1, cache = families()["flux1"], tmp_path / "cache"
    first = flux1.load_network(tiny_flux1_dir, CPU, torch.bfloat16, loader(form, cache))
    assert len(files(cache)) == 1
    monkeypatch.setattr(Weights, "__getitem__", None)
    second = flux1.load_network(tiny_flux1_dir, CPU, torch.bfloat16, loader(form, cache))
    assert_same(state(first), state(second))


def test_direct_quantization_equals_that_of_the_loaded_network(base: Path, tmp_path: Path) -> None:
    """As before there was a cache: loaded whole, then quantized in place."""
    for level in ("8bit", "4bit"):
        whole = load_chroma(base, CPU, torch.float32)
        quantize_base(whole, level)
        form = form_of(level, "wide", CPU)
        assert form is not None
        assert_same(state(whole), state(load_chroma(base, CPU, torch.float32, QuantizedLoad(form))))


def changed(path: Path, name: str) -> None:
    """One tensor of the file becomes another one, as in a rotation; size and times stay."""
    times = path.stat()
    tensors = load_file(path)
    tensors[name] = tensors[name] + 1e-3
    save_weights(path, tensors, {})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size


def test_another_base_dtype_form_or_version_is_another_key(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways = ("Chroma", "nf4", torch.bfloat16, "cpu")
    keys = [key_of(base, *ways), key_of(base, *ways[:2], torch.float32, "cpu"), key_of(base, "x", *ways[1:])]
    assert key_of(base, *ways) == keys[0]
    changed(base, "single_blocks.1.linear2.weight")
    keys.append(key_of(base, *ways))
    os.utime(base, ns=(1, 1))
    keys.append(key_of(base, *ways))
    monkeypatch.setattr(quantized_cache, "version", lambda name: "99.0")
    keys.append(key_of(base, *ways))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no checksums", "another file", "not a file"])
def test_a_damaged_file_is_made_again(damage: str, base: Path, tmp_path: Path, warnings: list[str]) -> None:
    cache = tmp_path / "cache"
    first = state(load_chroma(base, CPU, torch.float32, loader("float8", cache)))
    (kept,) = files(cache)
    whole = kept.read_bytes()
    if damage == "flipped bit":
        kept.write_bytes(whole[:-100] + bytes([whole[-100] ^ 4]) + whole[-99:])
    elif damage == "cut short":
        kept.write_bytes(whole[: len(whole) // 2])
    elif damage == "no checksums":
        save_file(load_file(kept), kept)
    elif damage == "another file":
        kept.write_bytes(b"<html>")
    else:
        kept.write_bytes(b"")
    again = load_chroma(base, CPU, torch.float32, loader("float8", cache))
    assert_same(first, state(again))
    assert kept.read_bytes() == whole
    assert "made again" in warnings[0]


def test_the_least_recently_used_files_are_removed_first(base: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_chroma(base, CPU, torch.float32, loader("float8", cache))
    (first,) = files(cache)
    size = first.stat().st_size
    os.utime(first, ns=(10**9, 10**9))
    load_chroma(base, CPU, torch.float32, loader("int8", cache, 3 * size))
    assert len(files(cache)) == 2
    load_chroma(base, CPU, torch.float32, loader("float8", cache, 3 * size))  # now it was used last
    load_chroma(base, CPU, torch.bfloat16, loader("float8", cache, int(2.2 * size)))
    assert first in files(cache)
    assert len(files(cache)) == 2
    load_chroma(base, CPU, torch.float32, loader("nf4", cache, 1000))
    assert len(files(cache)) == 2  # larger than the limit: not kept


def test_a_folder_that_cannot_be_written_is_a_warning(
    base: Path, tmp_path: Path, warnings: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert load_chroma(base, CPU, torch.float32, loader("float8", tmp_path / "file" / "cache"))
    assert "not kept for the next start" in warnings[0]


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from flowloom.models import weights
from flowloom.models.quantized_cache import QuantizedCache

original = weights._write_safe
def write(file, tensors, metadata):
    original(file, {"a": tensors["a"]}, metadata)
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
weights._write_safe = write
QuantizedCache(Path(sys.argv[1]), 2**30).store(sys.argv[2], {name: torch.ones(5000) for name in "ab"})
"""


def test_a_killed_writer_leaves_nothing_and_others_do_not_wait_for_a_slow_one(
    base: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    key = key_of(base, "Chroma", "torch.float8_e4m3fn", torch.float32, "cpu")
    command = [sys.executable, "-c", KILLED, str(cache), key]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not files(cache)
    assert list(cache.glob("*.tmp"))
    lock = hold(cache / f"{key}.lock")  # another rank writes
    assert lock is not None
    ours = load_chroma(base, CPU, torch.float32, loader("float8", cache))
    assert not files(cache)
    os.close(lock)
    load_chroma(base, CPU, torch.float32, loader("float8", cache))
    (kept,) = files(cache)
    assert kept.stem == key
    assert not list(cache.glob("*.tmp"))
    assert_same(state(ours), state(load_chroma(base, CPU, torch.float32, loader("float8", cache))))


def test_shards_are_all_part_of_the_key(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    tensors = {name: tensor.clone() for name, tensor in open_weights(base).items()}
    names = sorted(tensors)
    halves = {"m-1.safetensors": names[:40], "m-2.safetensors": names[40:]}
    for file, part in halves.items():
        save_weights(folder / file, {name: tensors[name] for name in part}, {})
    where = {name: file for file, part in halves.items() for name in part}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    before = key_of(folder)
    changed(folder / "m-2.safetensors", names[41])
    assert key_of(folder) != before
    assert families()["chroma"].load_network(folder, CPU, torch.float32, loader("float8", tmp_path / "cache"))
