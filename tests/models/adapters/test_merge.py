"""A merged base computes what the base with its adapter does."""

from pathlib import Path

import pytest
import torch

from flowloom.errors import WeightsError
from flowloom.models import chroma_names as diffusers_names
from flowloom.models.adapters.formats import save_adapter, to_comfy, to_diffusers
from flowloom.models.adapters.merge import merge
from flowloom.models.adapters.read import load_onto
from flowloom.models.weights import open_weights, save_weights

KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])


@pytest.fixture
def base_path(make_network, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    save_weights(path, make_network().state_dict(), {"modelspec.title": "the base"})
    return path


def loaded(network, path: Path):
    network.load_state_dict(dict(open_weights(path).items()))
    return network


@KINDS
@pytest.mark.parametrize("form", ["comfy", "kohya"])
@pytest.mark.parametrize("strength", [1.0, 0.5, -0.5])
def test_merged_equals_base_and_adapter(
    kind, form, strength, make_network, inputs, attach_trained, base_path: Path, tmp_path: Path
) -> None:
    adapter = attach_trained(make_network(), kind, rank=4, alpha=7.0)
    adapter_path = tmp_path / "adapter.safetensors"
    save_adapter(adapter_path, form, adapter.state_dict(), adapter.metadata, {}, adapter.base_weight)
    merge(base_path, adapter_path, tmp_path / "merged.safetensors", strength)
    merged, beside = loaded(make_network(), tmp_path / "merged.safetensors"), make_network()
    load_onto(beside, adapter_path, strength)
    with torch.no_grad():
        torch.testing.assert_close(merged(*inputs), beside(*inputs), rtol=0, atol=1e-5)
        assert (merged(*inputs) - make_network()(*inputs)).abs().max() > 0.05


def test_only_adapted_layers_change(make_network, attach_trained, base_path: Path, tmp_path: Path) -> None:
    adapter = attach_trained(make_network(), "lora", targets=["linear1"])
    save_weights(tmp_path / "a.safetensors", to_diffusers(adapter.state_dict(), adapter.metadata), {})
    merge(base_path, tmp_path / "a.safetensors", tmp_path / "merged.safetensors")
    base, merged = open_weights(base_path), open_weights(tmp_path / "merged.safetensors")
    assert set(merged) == set(base)
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {"single_blocks.0.linear1.weight", "single_blocks.1.linear1.weight"}
    assert merged.metadata["modelspec.title"] == "the base"
    assert "a.safetensors at strength 1" in merged.metadata["flowloom.merged"]


@pytest.mark.parametrize("names", ["ComfyUI", "diffusers"])
def test_a_base_may_have_any_names(
    names: str, make_network, attach_trained, base_path: Path, tmp_path: Path
) -> None:
    adapter = attach_trained(make_network(), "lora")
    save_weights(tmp_path / "a.safetensors", to_comfy(adapter.state_dict(), adapter.metadata), {})
    weights = make_network().state_dict()
    if names == "diffusers":
        renamed = diffusers_names.to_diffusers(weights)
    else:
        renamed = {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}
    save_weights(tmp_path / "other.safetensors", {k: v.contiguous() for k, v in renamed.items()}, {})
    for base, out in ((base_path, "x.safetensors"), (tmp_path / "other.safetensors", "y.safetensors")):
        merge(base, tmp_path / "a.safetensors", tmp_path / out)
    expected, found = open_weights(tmp_path / "x.safetensors"), open_weights(tmp_path / "y.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_dtype_is_the_bases_by_default(make_network, attach_trained, tmp_path: Path) -> None:
    save_weights(tmp_path / "base.safetensors", make_network().to(torch.bfloat16).state_dict(), {})
    adapter = attach_trained(make_network(), "lora")
    save_weights(tmp_path / "a.safetensors", to_comfy(adapter.state_dict(), adapter.metadata), {})
    merge(tmp_path / "base.safetensors", tmp_path / "a.safetensors", tmp_path / "same.safetensors")
    merge(
        tmp_path / "base.safetensors",
        tmp_path / "a.safetensors",
        tmp_path / "wide.safetensors",
        dtype=torch.float32,
    )
    same, wide = open_weights(tmp_path / "same.safetensors"), open_weights(tmp_path / "wide.safetensors")
    assert set(same.dtypes.values()) == {torch.bfloat16}
    assert set(wide.dtypes.values()) == {torch.float32}
    # The sum is made in float32, and rounded once.
    assert all(torch.equal(same[name], wide[name].to(torch.bfloat16)) for name in same)


def test_a_base_of_another_size_is_refused(
    make_network, attach_trained, base_path: Path, tmp_path: Path
) -> None:
    adapter = attach_trained(make_network(), "lora", targets=["img_in"])
    tensors = to_comfy(adapter.state_dict(), adapter.metadata)
    tensors["diffusion_model.img_in.lora_A.weight"] = torch.zeros(4, 24)
    save_weights(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(WeightsError, match=r"img_in\.weight.*Name the base"):
        merge(base_path, tmp_path / "a.safetensors", tmp_path / "merged.safetensors")
    assert not (tmp_path / "merged.safetensors").exists()
