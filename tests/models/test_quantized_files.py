"""Quantized files as people have them: read with the numbers that the code that wrote them means."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowloom.errors import WeightsError
from flowloom.model_library.requirements import unfit_models, unreadable
from flowloom.model_library.scan import look
from flowloom.models.chroma import load_chroma, open_chroma
from flowloom.models.family import detect
from flowloom.models.header import read_header
from flowloom.models.text_encoder import load_text_encoder
from flowloom.models.weights import open_weights, save_weights
from tests.models.quantized_files import (
    SCALED,
    Tensors,
    Written,
    write_bitsandbytes,
    write_gguf,
    write_scaled,
)

CPU = torch.device("cpu")
BLOCKS = ("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16")
WRITERS: dict[str, Callable[[Path, Tensors], Written]] = {
    **{kind: lambda path, tensors, kind=kind: write_gguf(path, tensors, kind) for kind in BLOCKS},
    **{style: lambda path, tensors, style=style: write_scaled(path, tensors, style) for style in SCALED},
    **{
        kind: lambda path, tensors, kind=kind: write_bitsandbytes(path, tensors, kind)
        for kind in ("nf4", "fp4")
    },
    "nf4, one level": lambda path, tensors: write_bitsandbytes(path, tensors, "nf4", is_nested=False),
    "int8 of bitsandbytes": lambda path, tensors: write_bitsandbytes(path, tensors, "int8"),
}
TITLES = {"comfy": "scaled float8", "int8": "scaled int8", "nf4": "4-bit weights", "Q4_K": "GGUF"}


@pytest.fixture(scope="module")
def tiny_tensors(tiny_chroma_path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in open_weights(tiny_chroma_path).items()}


def suffix_of(form: str) -> str:
    return ".gguf" if form in BLOCKS else ".safetensors"


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_means_what_its_writer_says(form: str, tiny_tensors, tmp_path: Path) -> None:
    path = tmp_path / f"chroma{suffix_of(form)}"
    meant = WRITERS[form](path, tiny_tensors)
    found = open_chroma(path)
    assert found.keys() == tiny_tensors.keys()
    for name, expected in meant.items():
        assert found.shapes[name] == tuple(tiny_tensors[name].shape)
        assert torch.equal(found[name].float(), expected), name
    assert found.is_dequantized == (form not in ("F16", "BF16"))
    network = load_chroma(path, CPU, torch.bfloat16)
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, meant[name].bfloat16()), name


@pytest.mark.parametrize("form", TITLES)
def test_the_library_shows_what_it_contains_and_ours_alone_reads_it(
    form: str, tiny_tensors, tmp_path: Path
) -> None:
    path = tmp_path / f"chroma{suffix_of(form)}"
    WRITERS[form](path, tiny_tensors)
    found = look(path)
    assert (found.kind, found.architecture, found.problem) == ("network", "chroma", None)
    assert found.num_params == sum(tensor.numel() for tensor in tiny_tensors.values())
    assert found.width == tiny_tensors["txt_in.weight"].shape[1]
    assert found.quantized
    assert TITLES[form] in found.quantized
    assert found.precision == {"comfy": "F8_E4M3", "int8": "I8", "nf4": "NF4", "Q4_K": "Q4_K"}[form]
    assert detect(path).name == "chroma"
    assert unfit_models({"chroma_path": str(path)}) == []
    assert "which only Flowloom's own trainer reads. Use the bf16" in (unreadable(path) or "")


def test_gguf_is_known_by_its_content(tiny_tensors, tmp_path: Path) -> None:
    path = tmp_path / "chroma.safetensors"
    write_gguf(path, tiny_tensors, "Q8_0")
    assert look(path).precision == "Q8_0"
    assert load_chroma(path, CPU, torch.float32)


@pytest.mark.parametrize("form", ["comfy", "GGUF"])
def test_t5_in_that_form_gives_the_states_of_its_numbers(form: str, tiny_t5: Path, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in open_weights(tiny_t5 / "model.safetensors").items()}
    if form == "comfy":
        path = tmp_path / "t5.safetensors"
        meant = write_scaled(path, tensors, "comfy")
        extra = {"spiece_model": torch.zeros(9, dtype=torch.uint8)}
        save_file(load_file(path) | extra, path)
    else:
        path = tmp_path / "t5.gguf"
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
        renamed = {name: names.get_name(name, try_suffixes=(".weight",)) or "" for name in tensors}
        theirs = {renamed[name]: tensor for name, tensor in tensors.items()}
        written = write_gguf(path, theirs, "Q8_0", "t5encoder")
        meant = {name: written[renamed[name]] for name in tensors}
        assert look(path).architecture == "t5"
    save_weights(tmp_path / "plain.safetensors", meant, {})
    states = [
        load_text_encoder(file, tiny_t5, tiny_t5, CPU, torch.float32).encode(["a red bar"], 16)[0]
        for file in (path, tmp_path / "plain.safetensors")
    ]
    assert torch.equal(*states)


def test_only_one_tensor_is_ever_wide(tiny_tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The float32 numbers of a tensor are freed before the next one is read."""
    import weakref

    from flowloom.models import dequantize

    write_scaled(tmp_path / "x.safetensors", tiny_tensors, "comfy")
    alive: list[weakref.ref] = []
    most = 0
    original = dequantize._read_scaled

    def counted(*arguments):
        nonlocal most
        wide = original(*arguments)
        alive.append(weakref.ref(wide))
        most = max(most, sum(one() is not None for one in alive))
        return wide

    monkeypatch.setattr(dequantize, "_read_scaled", counted)
    load_chroma(tmp_path / "x.safetensors", CPU, torch.bfloat16)
    assert len(alive) > 20
    assert most <= 2  # the new one, and the one whose name is about to be bound to it


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def some(tensors: dict[str, torch.Tensor], ends: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ends))


def as_json(content: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def rotated(tensors: dict[str, torch.Tensor]) -> None:
    """int8 after a Hadamard rotation: its numbers times the scale are another network."""
    name = some(tensors, ".weight_scale").replace("weight_scale", "comfy_quant")
    tensors[name] = as_json({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256})


def replaced(ends: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({some(tensors, ends): tensor})


HOSTILE = {
    "rotated": ("int8", rotated, "ComfyUI in a format that is not read here"),
    "second scale": ("rows", lambda t: t.update(
        {some(t, ".weight_scale") + "_2": torch.ones(1)}), "ComfyUI in a format"),
    "integer scales": ("rows", replaced(".weight_scale", torch.ones(4, dtype=torch.uint8)), "layout"),
    "scales of another shape": ("rows", replaced(".weight_scale", torch.ones(7, 3)), "do not fit"),
    "scale without a weight": ("comfy", lambda t: t.pop(
        some(t, "scale_weight").replace("scale_weight", "weight")), "layout"),
    "only the marker": ("comfy", lambda t: [t.pop(n) for n in list(t) if "scale_" in n], "layout"),
    "no JSON": ("nf4", replaced("__nf4", torch.zeros(9, dtype=torch.uint8)), "description of its 4-bit"),
    "huge shape": ("nf4", replaced("__nf4", as_json(
        {"quant_type": "nf4", "blocksize": 64, "shape": [2**30, 2**30]})), "do not fit its shape"),
    "zero blocks": ("nf4", replaced("__nf4", as_json(
        {"quant_type": "nf4", "blocksize": 0, "shape": [64, 64]})), "description of its 4-bit"),
    "lost maxima": ("nf4", lambda t: t.pop(some(t, ".absmax")), "bitsandbytes, not all of them"),
    "short maxima": ("nf4", replaced(".absmax", torch.zeros(3, dtype=torch.uint8)), "do not fit its shape"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_numbers_that_are_not_understood_are_refused(fault: str, tiny_tensors, tmp_path: Path) -> None:
    form, change, message = HOSTILE[fault]
    path = tmp_path / "x.safetensors"
    WRITERS[form](path, tiny_tensors)
    rewritten(path, change)
    with pytest.raises(WeightsError, match=message):
        open_chroma(path)
    look(path)  # the list of models shows it in any case


def test_a_truncated_gguf_file_is_reported_at_every_length(tiny_tensors, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, tiny_tensors, "Q4_0")
    content = whole.read_bytes()
    path = tmp_path / "x.gguf"
    end = max(place.end for place in read_header(whole).tensors.values())
    lengths = [4, 7, 8, 23, 24, 30, *range(40, 3000, 97), len(content) // 2, end - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"GGUF file: truncated|x\.gguf: truncated"):
            open_weights(path)
        assert look(path).kind == "damaged"


def gguf_head(tensors: int, values: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, values)


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def entry(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


BAD_GGUF = {
    "version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "values without end": gguf_head(0, 2**63) + text(b"k") * 3,
    "endless array": gguf_head(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 2**62) + bytes(64),
    "huge array": gguf_head(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 12, 2**61),
    "nested array": gguf_head(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(64),
    "huge string": gguf_head(1, 0) + struct.pack("<Q", 2**63) + bytes(64),
    "dimensions": gguf_head(1, 0) + text(b"a") + struct.pack("<I", 2**31) + bytes(64),
    "size": gguf_head(1, 0) + entry(b"a", (2**62, 2**62), 0, 0),
    "offset": gguf_head(1, 0) + entry(b"a", (4,), 0, 2**63) + bytes(64),
    "part of a block": gguf_head(1, 0) + entry(b"a", (33,), 8, 0) + bytes(64),
    "kind": gguf_head(1, 0) + entry(b"a", (32,), 4711, 0) + bytes(64),
    "twice": gguf_head(2, 0) + entry(b"a", (1,), 0, 0) * 2 + bytes(99),
    "no blocks of that kind": gguf_head(1, 0) + entry(b"a", (32,), 9, 0) + bytes(999),
    "alignment": gguf_head(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 0),
    "shape": gguf_head(1, 1) + text(b"comfy.gguf.orig_shape.a") + struct.pack("<IIQ2i", 9, 5, 2, -2, -2)
    + entry(b"a", (5,), 0, 0) + bytes(99),
    "only the magic": b"GGUF" + bytes(64),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("fault", BAD_GGUF)
def test_a_hostile_gguf_header_is_refused_at_once(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(BAD_GGUF[fault])
    with pytest.raises(WeightsError, match=r"x\.gguf"):
        open_weights(path)


def test_random_damage_of_a_gguf_file_is_an_error_or_other_numbers(tiny_tensors, tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.gguf", tmp_path / "x.gguf"
    write_gguf(whole, dict(list(tiny_tensors.items())[:6]), "Q5_K")
    content = whole.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for at in draw.integers(0, 1200, 3):
            damaged[at] = draw.integers(0, 256)
        path.write_bytes(damaged)
        with suppress(WeightsError):
            for tensor in open_weights(path).values():
                tensor.sum()


def test_a_pipe_or_a_folder_named_gguf_is_no_weights(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(WeightsError):
        open_weights(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"y\.gguf"):
        open_weights(tmp_path / "y.gguf")
    os.mkfifo(tmp_path / "z.gguf")
    assert look(tmp_path / "z.gguf").kind == "damaged"
