"""Runs on bases in quantized files: those of the plain files with the same numbers, bit for bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowloom.config.flow_format.read import LoadedConfig
from flowloom.config.run import RunConfig
from flowloom.engine.__main__ import run_engine
from flowloom.engine.build import build
from flowloom.engine.estimate.plan import make_plan
from flowloom.engine.parallel.ranks import Ranks
from flowloom.engine.preview import SamplingParams
from flowloom.engine.sample import SampleRequest, sample
from flowloom.errors import ConfigError
from flowloom.model_library.requirements import unfit_models
from flowloom.model_library.scan import look
from flowloom.models import weight_files
from flowloom.models.chroma_names import from_diffusers, to_diffusers
from flowloom.models.families.chroma import FAMILY as CHROMA
from flowloom.models.families.flux1 import FAMILY as FLUX1
from flowloom.models.family import detect
from flowloom.models.gguf_files import read_blocks
from flowloom.models.quantized import check_products
from flowloom.models.quantized_cache import default_folder
from flowloom.models.weights import open_weights, save_weights
from flowloom.run.directory import RunDir
from tests.engine.test_flux1 import released_state
from tests.engine.test_streaming import LORA, assert_equal, results
from tests.models.quantized_files import write_bitsandbytes, write_gguf, write_scaled

WRITE = {
    "comfy": lambda path, tensors: write_scaled(path, tensors, "comfy"),
    "Q4_0": lambda path, tensors: write_gguf(path, tensors, "Q4_0"),
    "nf4": lambda path, tensors: write_bitsandbytes(path, tensors, "nf4"),
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora, 8 bits": ("Q4_0", {"lora": LORA | {"base_model_quant_level": "8bit"}}),
    "dora, streamed": (
        "nf4",
        {"lora": LORA, "method": {"kind": "dora"}, "memory": {"streamed_blocks": "all"}},
    ),
    "full": ("comfy", {"method": {"kind": "full"}}),
}


@pytest.fixture
def bases(tiny_chroma_path: Path, tmp_path: Path) -> Callable[[str], dict[str, Path]]:
    """`bases("Q4_0")`: a quantized file, and a plain one with its numbers."""
    tensors = {name: tensor.clone() for name, tensor in open_weights(tiny_chroma_path).items()}

    def make(form: str) -> dict[str, Path]:
        quantized, plain = tmp_path / "quantized.safetensors", tmp_path / "plain.safetensors"
        save_weights(plain, WRITE[form](quantized, tensors), {})
        return {"quantized": quantized, "plain": plain}

    return make


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_on_a_quantized_file_is_that_on_its_numbers(
    kind: str, bases: Callable[[str], dict[str, Path]], make_run: Callable[..., RunDir], tmp_path: Path
) -> None:
    form, sections = RUNS[kind]
    found = []
    for name, path in bases(form).items():
        run_dir = make_run(name, model={"chroma_path": str(path)}, limits={"max_steps": 2}, **sections)
        run_engine(run_dir)
        losses, tensors, _ = results(run_dir)
        images = []
        if kind == "lora, 8 bits":
            out, params = tmp_path / f"{name} images", SamplingParams(64, 64, steps=1, max_tokens=12)
            request = SampleRequest(run_dir.path, ["red"], out, params)
            images = [image.read_bytes() for image in sample(request)]
        found.append((losses, tensors, images))
    assert len(found[0][0]) >= 2
    assert_equal(*found)


def test_flux1_reads_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Black Forest Labs' names, whose rows are cut, and below ComfyUI's prefix."""
    read: list[int] = []

    def counted(path: Path, place: Any) -> Any:
        read.append(place.begin)
        return read_blocks(path, place)

    monkeypatch.setattr(weight_files, "read_blocks", counted)
    state = released_state(columns=32)
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}
    meant = {
        "flux.gguf": write_gguf(tmp_path / "flux.gguf", state, "Q5_1"),
        "flux.safetensors": write_scaled(tmp_path / "flux.safetensors", prefixed, "comfy_quant"),
    }
    for name, numbers in meant.items():
        save_weights(tmp_path / f"{name}.plain.safetensors", numbers, {})
        assert detect(tmp_path / name) is FLUX1
        ours, theirs = (FLUX1.open_weights(tmp_path / file) for file in (name, f"{name}.plain.safetensors"))
        assert ours.is_dequantized
        assert ours.shapes == theirs.shapes
        assert all(torch.equal(ours[name], theirs[name].float()) for name in theirs)
    # q, k and v are rows of one layer, which is dequantized once for all of them.
    assert len(read) == len(set(read)) > 0


@pytest.mark.parametrize("form", ["nf4", "comfy"])
def test_a_diffusers_folder_of_quantized_shards_is_read(
    form: str, tiny_chroma_path: Path, tmp_path: Path
) -> None:
    """diffusers' names, whose rows are joined; scales in another shard than their weights."""
    folder = tmp_path / "pipeline" / "transformer"
    folder.mkdir(parents=True)
    (folder.parent / "model_index.json").write_text('{"_class_name": "ChromaPipeline"}')
    state = {name: tensor.clone() for name, tensor in to_diffusers(open_weights(tiny_chroma_path)).items()}
    meant = from_diffusers(WRITE[form](tmp_path / "whole.safetensors", state))
    stored = load_file(tmp_path / "whole.safetensors")
    where = {name: f"diffusion_pytorch_model-{i % 2}.safetensors" for i, name in enumerate(sorted(stored))}
    for shard in set(where.values()):
        save_file({name: tensor for name, tensor in stored.items() if where[name] == shard}, folder / shard)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    found = CHROMA.load_network(folder.parent, torch.device("cpu"), torch.float32).state_dict()
    assert found.keys() == meant.keys()
    assert all(torch.equal(found[name], numbers.float()) for name, numbers in meant.items())
    listed = look(folder)
    assert (listed.problem, bool(listed.quantized)) == (None, True)
    assert not unfit_models({"chroma_path": str(folder.parent)})


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_preflight_warns_about_the_rounding(
    kind: str, bases: Callable[[str], dict[str, Path]], make_config: Callable[..., Any]
) -> None:
    paths = bases("Q4_0")
    method = {"lora": LORA} if kind == "lora" else {"method": {"kind": "full"}}
    config = make_config(model={"chroma_path": str(paths["quantized"])}, **method)
    plan = make_plan(LoadedConfig(config, {}, [], Path("config.json")))
    (note,) = [note for note in plan.notes if "GGUF weights (Q4_0)" in note]
    assert ("trains all of its weights from there" in note) == (kind == "full")
    assert not plan.problems


@pytest.mark.parametrize(("level", "bits"), [("full", 16), ("8bit", 8), ("4bit", 4)])
def test_the_preflight_shows_the_size_that_is_kept(
    level: str, bits: int, tiny_chroma_path: Path, make_config: Callable[..., Any]
) -> None:
    config = make_config(lora=LORA | {"base_model_quant_level": level})
    rows = dict(dict(make_plan(LoadedConfig(config, {}, [], Path("config.json"))).sections)["networks"])
    if bits == 16:
        assert "quantized base" not in rows
        return
    size, kept = rows["quantized base"].split(" GB, kept in ")
    num_weights = sum(math.prod(shape) for shape in open_weights(tiny_chroma_path).shapes.values())
    assert float(size) == pytest.approx(num_weights * bits / 8 / 1e9, abs=0.1)
    assert kept == f"{default_folder()} for the next start"


def test_devices_without_such_products_are_refused_before_loading(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(
        lora=LORA | {"base_model_quant_level": "8bit"},
        method={"base_products": "fp8"},
        model={"chroma_path": "/nonexistent.safetensors"},
    )
    message = r"base_products: fp8 needs a CUDA device of compute capability 8\.9 or newer, not cpu\."
    with pytest.raises(ConfigError, match=message) as caught:
        build(config, Ranks())
    assert "\n" not in str(caught.value.problems[0])
    plan = make_plan(LoadedConfig(config, {}, [], Path("config.json")))
    assert "method.base_products" in [problem.where for problem in plan.problems]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    check_products("int8", torch.device("cuda"))
    with pytest.raises(ConfigError, match="fp8 needs"):
        check_products("fp8", torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"int8 needs a CUDA device .* or the CPU, not mps"):
        check_products("int8", torch.device("mps"))
