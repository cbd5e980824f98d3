"""Adapter files: the names that each program reads, and back from any of them."""

import json
from pathlib import Path

import pytest
import torch

from flowloom.errors import WeightsError
from flowloom.models.adapters.formats import (
    adapter_metadata,
    save_adapter,
    to_comfy,
    to_diffusers,
    to_kohya,
)
from flowloom.models.adapters.read import load_onto, read_adapter
from flowloom.models.weights import open_weights, save_weights

KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
FORMS = pytest.mark.parametrize("form", ["comfy", "kohya", "diffusers"])
QKV = "double_blocks.0.img_attn.qkv"


def exported(form, adapter, path: Path) -> Path:
    save_adapter(path, form, adapter.state_dict(), adapter.metadata, {}, adapter.base_weight)
    return path


def test_comfyui_reads_these_names(make_network, attach_trained) -> None:
    names = {
        kind: set(to_comfy(adapter.state_dict(), adapter.metadata, adapter.base_weight))
        for kind in ("lora", "dora", "lokr")
        for adapter in [attach_trained(make_network(), kind, targets=["0.img_attn.qkv"])]
    }
    lora = {f"diffusion_model.{QKV}.{s}" for s in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert names["lora"] == lora
    assert names["dora"] == lora | {f"diffusion_model.{QKV}.dora_scale"}
    assert names["lokr"] == {
        f"diffusion_model.{QKV}.{s}" for s in ("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha")
    }


def test_kohya_reads_these_names(make_network, attach_trained) -> None:
    adapter = attach_trained(make_network(), "lora")
    names = set(to_kohya(adapter.state_dict(), adapter.metadata))
    leaves = [
        f"double_blocks_{i}_{s}_{leaf}"
        for i in (0, 1)
        for s in ("img", "txt")
        for leaf in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2")
    ]
    leaves += [f"single_blocks_{i}_linear{k}" for i in (0, 1) for k in (1, 2)]
    leaves += ["img_in", "txt_in", "final_layer_linear"]
    assert names == {
        f"lora_unet_{leaf}.{suffix}"
        for leaf in leaves
        for suffix in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    lokr = attach_trained(make_network(), "lokr", targets=["0.img_attn.qkv"])
    assert "lora_unet_double_blocks_0_img_attn_qkv.lokr_w1" in to_kohya(lokr.state_dict(), lokr.metadata)


def test_doras_scale_is_a_column_for_comfyui_and_kohya_and_flat_for_diffusers(
    make_network, attach_trained
) -> None:
    adapter = attach_trained(make_network(), "dora", targets=["0.img_attn.qkv"])
    state, meta = adapter.state_dict(), adapter.metadata
    scale = state[f"{QKV}.dora_scale"]
    assert scale.shape == (192,)
    comfys = to_comfy(state, meta, adapter.base_weight)[f"diffusion_model.{QKV}.dora_scale"]
    assert comfys.shape == (192, 1)
    kohyas = to_kohya(state, meta)["lora_unet_double_blocks_0_img_attn_qkv.dora_scale"]
    assert torch.equal(kohyas, scale[:, None])
    cut = to_diffusers(state, meta)["transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector.weight"]
    assert torch.equal(cut, scale[64:128])


@FORMS
@KINDS
def test_every_format_comes_back_as_the_same_adapter(
    form, kind, make_network, inputs, attach_trained, tmp_path: Path
) -> None:
    network, other = make_network(), make_network()
    adapter = attach_trained(network, kind, rank=4, alpha=2.0)
    path = exported(form, adapter, tmp_path / "adapter.safetensors")
    if not (kind == "lokr" and form == "diffusers"):  # there it becomes the LoRA that equals it
        state, meta = read_adapter(path)
        assert state.keys() == adapter.parameters.keys()
        is_folded = kind == "lokr" or form == "diffusers"  # the scale, a half, is in these tensors
        for name in state:
            has_rank = name.replace("lokr_w1", "lokr_w2") not in state or kind != "lokr"
            is_scaled = is_folded and has_rank and name.endswith((".lora_B.weight", ".lokr_w1"))
            is_converted = form == "comfy" and name.endswith("dora_scale")
            expected = adapter.parameters[name] * (0.5 if is_scaled else 1.0)
            assert torch.equal(state[name], expected) != is_converted
        assert (meta["kind"], meta["rank"], meta["alpha"]) == (kind, 4, 4.0 if is_folded else 2.0)
        assert set(meta["targets"]) == set(adapter.layers)
    load_onto(other, path)
    with torch.no_grad():
        torch.testing.assert_close(other(*inputs), network(*inputs), rtol=0, atol=1e-6)


@FORMS
@pytest.mark.parametrize("alpha", [4.0, 1.0, 7.5])
def test_any_alpha_comes_back(form, alpha, make_network, inputs, attach_trained, tmp_path: Path) -> None:
    network, other = make_network(), make_network()
    adapter = attach_trained(network, "lora", rank=4, alpha=alpha)
    load_onto(other, exported(form, adapter, tmp_path / "adapter.safetensors"))
    with torch.no_grad():
        atol = 1e-6 if form == "diffusers" else 0  # there the scale is in B, and rounds
        torch.testing.assert_close(other(*inputs), network(*inputs), rtol=0, atol=atol)


@KINDS
def test_strength_goes_from_the_base_to_the_adapter(
    kind, make_network, inputs, attach_trained, tmp_path: Path
) -> None:
    network = make_network()
    adapter = attach_trained(
        network, kind, targets=["final_layer"]
    )  # there the output is linear in the strength
    path = exported("comfy", adapter, tmp_path / "adapter.safetensors")
    with torch.no_grad():
        base, full = make_network()(*inputs), network(*inputs)
        for strength in (0.0, 0.5, 1.0, -1.0, 1.5):
            other = make_network()
            load_onto(other, path, strength)
            torch.testing.assert_close(other(*inputs), torch.lerp(base, full, strength), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "order", [("dora", "lora", "lokr"), ("lokr", "lora", "dora"), ("lora", "lora", "dora")]
)
def test_adapters_add_up_on_one_network_in_any_order(
    order, make_network, inputs, attach_trained, tmp_path: Path
) -> None:
    """On the last layer their differences to the base can be added."""
    base = make_network()(*inputs).detach()
    together, total = make_network(), base.clone()
    for kind in order:
        network = make_network()
        adapter = attach_trained(network, kind, targets=["final_layer"])
        load_onto(together, exported("comfy", adapter, tmp_path / f"{kind}.safetensors"))
        total += network(*inputs).detach() - base
    torch.testing.assert_close(together(*inputs).detach(), total, rtol=0, atol=1e-5)


def test_a_file_without_alpha_has_scale_1(make_network, inputs, attach_trained, tmp_path: Path) -> None:
    """As ComfyUI, peft and diffusers take it."""
    network, other = make_network(), make_network()
    adapter = attach_trained(network, "lora", rank=4, alpha=4)
    tensors = to_comfy(adapter.state_dict(), adapter.metadata)
    save_weights(tmp_path / "a.safetensors", {n: t for n, t in tensors.items() if "alpha" not in n}, {})
    load_onto(other, tmp_path / "a.safetensors")
    assert torch.equal(other(*inputs), network(*inputs))


def test_ranks_and_alphas_may_differ_from_layer_to_layer(
    make_network, inputs, attach_trained, tmp_path: Path
) -> None:
    network, other = make_network(), make_network()
    narrow = attach_trained(network, "lora", rank=2, alpha=3.0, targets=["double_blocks"])
    tensors = to_comfy(narrow.state_dict(), narrow.metadata)
    wide = attach_trained(network, "lora", rank=8, alpha=4.0, targets=["single_blocks"])
    tensors |= to_comfy(wide.state_dict(), wide.metadata)
    save_weights(tmp_path / "a.safetensors", tensors, {})
    state, meta = read_adapter(tmp_path / "a.safetensors")
    assert (meta["rank"], meta["alpha"]) == (2, 3.0)
    assert set(meta["sites"].values()) == {(8, 4.0)}
    load_onto(other, tmp_path / "a.safetensors")
    assert torch.equal(other(*inputs), network(*inputs))
    again = to_kohya(state, meta)
    assert again["lora_unet_single_blocks_0_linear1.alpha"] == 4.0


def test_an_adapter_trained_on_diffusers_cut_layers_is_put_together(
    make_network, inputs, tmp_path: Path
) -> None:
    """q, k, v and the MLP with an A, alpha and rank each, one of them left out: against the dense sum."""
    generator = torch.Generator().manual_seed(0)
    network, dense = make_network(), make_network()
    tensors = {}
    rows = {"attn.to_q": (0, 64), "attn.to_v": (128, 64), "proj_mlp": (192, 256)}
    for rank, (part, (start, size)) in enumerate(rows.items(), start=1):
        a, b = torch.randn(rank, 64, generator=generator), torch.randn(size, rank, generator=generator)
        prefix = f"transformer.single_transformer_blocks.1.{part}"
        tensors |= {
            f"{prefix}.lora_A.weight": a,
            f"{prefix}.lora_B.weight": b,
            f"{prefix}.alpha": torch.tensor(0.3),
        }
        dense.single_blocks[1].linear1.weight.data[start : start + size] += 0.3 / rank * b @ a
    save_weights(tmp_path / "a.safetensors", tensors, {})
    adapter = load_onto(network, tmp_path / "a.safetensors")
    assert adapter.metadata["rank"] == 1 + 2 + 3
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs), dense(*inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"img_in.weight": torch.zeros(2, 2)}, r"not a LoRA.*'img_in.weight'"),
        (
            {"lora_te1_text_model_x.lora_down.weight": torch.zeros(2, 2)},
            r"for a text encoder \(lora_te1_text",
        ),
        ({"diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.zeros(2, 64)}, "lora_B"),
        (
            {
                "diffusion_model.double_blocks.9.img_attn.qkv.lora_A.weight": torch.zeros(2, 64),
                "diffusion_model.double_blocks.9.img_attn.qkv.lora_B.weight": torch.zeros(192, 2),
            },
            "does not fit this network",
        ),
        (
            {
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": torch.zeros(2, 48),
                "diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": torch.zeros(144, 2),
            },
            "does not fit this network",
        ),
    ],
    ids=["weights", "text encoder", "half", "deeper", "narrower"],
)
def test_a_file_that_is_no_adapter_of_this_network_is_refused(
    tensors, said, make_network, tmp_path: Path
) -> None:
    save_weights(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(WeightsError, match=said):
        load_onto(make_network(), tmp_path / "a.safetensors")


def test_a_dora_over_columns_is_refused_not_misread(make_network, attach_trained, tmp_path: Path) -> None:
    adapter = attach_trained(make_network(), "dora", targets=["0.img_attn.qkv"])
    tensors = to_comfy(adapter.state_dict(), adapter.metadata, adapter.base_weight)
    tensors[f"diffusion_model.{QKV}.dora_scale"] = torch.ones(1, 64)
    save_weights(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(WeightsError, match="norms over columns"):
        read_adapter(tmp_path / "a.safetensors")


def test_the_file_says_how_it_was_made(make_network, attach_trained, tmp_path: Path) -> None:
    adapter = attach_trained(make_network(), "lora", rank=4, alpha=2.0)
    said = adapter_metadata(adapter.metadata, '{"training": {}}', {"rows": 12}, {"torch": "2.13.0"})
    save_weights(tmp_path / "a.safetensors", to_comfy(adapter.state_dict(), adapter.metadata), said)
    read = open_weights(tmp_path / "a.safetensors").metadata
    assert (read["ss_network_dim"], read["ss_network_alpha"]) == ("4", "2.0")
    assert read["modelspec.architecture"] == "chroma/lora"
    assert json.loads(read["flowloom.config"]) == {"training": {}}
    assert json.loads(read["flowloom.dataset"]) == {"rows": 12}
    assert json.loads(read["flowloom.versions"]) == {"torch": "2.13.0"}


def test_a_dora_goes_between_comfyui_and_the_others_by_its_base_alone(
    make_network, attach_trained, tmp_path: Path
) -> None:
    adapter = attach_trained(make_network(), "dora")
    comfys = exported("comfy", adapter, tmp_path / "comfy.safetensors")
    state, meta = read_adapter(comfys)
    with pytest.raises(WeightsError, match="Name the base model"):
        to_kohya(state, meta)
    with pytest.raises(WeightsError, match="Name the base model"):
        to_comfy(adapter.state_dict(), adapter.metadata)
    again = tmp_path / "again.safetensors"
    save_adapter(again, "comfy", state, meta, {})  # the same rule: unchanged
    assert dict(open_weights(again).items()).keys() == dict(open_weights(comfys).items()).keys()
    assert all(torch.equal(t, open_weights(comfys)[name]) for name, t in open_weights(again).items())
    kohyas = to_kohya(state, meta, adapter.base_weight)
    for name, tensor in to_kohya(adapter.state_dict(), adapter.metadata).items():
        torch.testing.assert_close(kohyas[name], tensor, rtol=1e-6, atol=0)


def test_the_metadata_states_the_alpha_that_the_file_has(make_network, attach_trained, tmp_path) -> None:
    for kind, form, alpha in (
        ("lora", "comfy", "2.0"),
        ("lora", "diffusers", "4.0"),
        ("lokr", "comfy", "4.0"),
    ):
        adapter = attach_trained(make_network(), kind, rank=4, alpha=2.0)
        path, said = tmp_path / "a.safetensors", adapter_metadata(adapter.metadata, "{}", {}, {})
        save_adapter(path, form, adapter.state_dict(), adapter.metadata, said)  # pyright: ignore[reportArgumentType]
        assert open_weights(path).metadata["ss_network_alpha"] == alpha
