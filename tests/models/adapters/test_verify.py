"""An export that a program would not load as trained is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.formats import adapter_content
from flowloom.models.adapters.verify import rules_for, verify
from flowloom.models.family import families

FORMS = ("comfy", "kohya", "diffusers")
KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
QKV = "double_blocks.0.img_attn.qkv"


@pytest.fixture
def exported(make_network, attach_trained):
    """The adapter of a small network, and its file in a format."""

    def make(form: str, kind: str = "lora", **settings):
        adapter = attach_trained(make_network(), kind, **({"alpha": 6.0} | settings))
        state, meta, base = adapter.state_dict(), adapter.metadata, adapter.base_weight
        tensors, _ = adapter_content(form, state, meta, {}, base)  # pyright: ignore[reportArgumentType]
        return tensors, (state, meta, base)

    return make


@KINDS
@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_verified_for_its_program(form, kind, exported) -> None:
    tensors, (state, meta, base) = exported(form, kind)
    verified = verify(rules_for(form, meta), tensors, state, meta, base)
    assert verified.num_layers == 23
    assert verified.line.startswith("23 layers, by the key rules of ")


@KINDS
def test_ranks_and_alphas_of_each_layer_are_verified(kind, make_network, attach_uneven) -> None:
    adapter = attach_uneven(make_network(), kind)
    state, meta, base = adapter.state_dict(), adapter.metadata, adapter.base_weight
    for form in FORMS:
        tensors, _ = adapter_content(form, state, meta, {}, base)
        assert verify(rules_for(form, meta), tensors, state, meta, base).num_layers == len(adapter.layers)


def swapped_rows(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """q and k in each other's place."""
    name = next(
        name for name in tensors if "img_attn" in name and name.endswith(("lora_B.weight", "lora_up.weight"))
    )
    q, k, v = tensors[name].chunk(3)
    return tensors | {name: torch.cat((k, q, v))}


def swapped_parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts' own layers in each other's place."""
    one, other = (f"transformer.transformer_blocks.0.attn.to_{part}.lora_B.weight" for part in "qk")
    return tensors | {one: tensors[other], other: tensors[one]}


def without_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}


def bare_keys(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix("diffusion_model.").removeprefix("transformer."): t for name, t in tensors.items()
    }


def wrong_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"base_model.model.{name}": tensor for name, tensor in bare_keys(tensors).items()}


def with_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"transformer.proj_out.alpha": torch.tensor(1.0)}


def without_one_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor for name, tensor in tensors.items() if "txt_in" not in name and "context_emb" not in name
    }


def without_up(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if name.endswith(("lora_B.weight", "lora_up.weight")))
    return {key: tensor for key, tensor in tensors.items() if key != name}


def of_another_layer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of a block under a number that the network does not have."""
    return {name.replace("blocks.1.", "blocks.7.").replace("_1_", "_7_"): t for name, t in tensors.items()}


def half_as_strong(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if name.endswith(("lora_A.weight", "lora_down.weight")))
    return tensors | {name: tensors[name] / 2}


@pytest.mark.parametrize(
    ("form", "break_it", "reason"),
    [
        ("comfy", swapped_rows, "the change of double_blocks.0.img_attn.qkv would differ"),
        ("kohya", swapped_rows, "the change of double_blocks.0.img_attn.qkv would differ"),
        ("diffusers", swapped_parts, "the change of double_blocks.0.img_attn.qkv would differ"),
        ("comfy", without_alpha, "0.667 times as strong"),
        ("kohya", without_alpha, "0.667 times as strong"),
        ("diffusers", with_alpha, "it ignores 1 of"),
        ("comfy", bare_keys, "it ignores 69 of 69 tensors"),
        ("diffusers", bare_keys, "it ignores"),
        ("comfy", wrong_prefix, "it ignores 69 of 69 tensors"),
        ("diffusers", wrong_prefix, "it ignores"),
        *((form, without_one_layer, "the change of txt_in would differ") for form in FORMS),
        *((form, without_up, "has no lora_B.weight") for form in FORMS),
        *((form, of_another_layer, "it has no layer") for form in FORMS),
        *((form, half_as_strong, "0.5 times as strong") for form in ("comfy", "kohya")),
    ],
)
def test_a_wrong_export_is_refused_with_the_reason(
    form: str, break_it: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str, exported
) -> None:
    tensors, (state, meta, base) = exported(form)
    with pytest.raises(WeightsError, match="does not load in") as raised:
        verify(rules_for(form, meta), break_it(tensors), state, meta, base)
    assert reason in str(raised.value)


@pytest.mark.parametrize(("form", "other"), [("comfy", "kohya"), ("kohya", "comfy")])
def test_a_dora_under_the_other_programs_rule_is_refused(form, other, exported) -> None:
    """The names are right; the scales are those that the other program divides otherwise."""
    tensors, (state, meta, base) = exported(form, "dora")
    of_other, _ = exported(other, "dora")
    scales = [tensor for name, tensor in of_other.items() if name.endswith("dora_scale")]
    names = [name for name in tensors if name.endswith("dora_scale")]
    with pytest.raises(WeightsError, match="the DoRA scales of"):
        verify(rules_for(form, meta), tensors | dict(zip(names, scales, strict=True)), state, meta, base)


def test_a_lokr_whose_scale_lycoris_would_square_is_refused(exported) -> None:
    tensors, (state, meta, base) = exported("comfy", "lokr")
    kohya, _ = exported("kohya", "lokr")
    stem = next(name.removesuffix(".lokr_w2_b") for name in kohya if name.endswith(".lokr_w2_b"))
    first = next(name for name in kohya if name in {f"{stem}.lokr_w1", f"{stem}.lokr_w1_a"})
    halved = kohya | {f"{stem}.alpha": 2 * kohya[f"{stem}.alpha"], first: kohya[first] / 2}
    verify(rules_for("comfy", meta), tensors, state, meta, base)
    with pytest.raises(WeightsError, match="2 times as strong"):
        verify(rules_for("kohya", meta), halved, state, meta, base)


def test_joined_layers_of_which_some_are_adapted_are_verified() -> None:
    """kohya's FLUX.1 has q, k and v as one layer; the network here has three, of which one is trained."""
    name = "single_transformer_blocks.3.attn.to_k"
    state = {f"{name}.lora_A.weight": torch.randn(2, 8), f"{name}.lora_B.weight": torch.randn(8, 2)}
    meta = {"kind": "lora", "rank": 2, "alpha": 1.0, "family": "flux1"}
    tensors, _ = adapter_content("kohya", state, meta, {})
    assert tensors["lora_unet_single_blocks_3_linear1.lora_up.weight"].shape == (56, 2)
    assert verify(rules_for("kohya", meta), tensors, state, meta).num_layers == 1
    up = tensors["lora_unet_single_blocks_3_linear1.lora_up.weight"].roll(8, 0)
    moved = tensors | {"lora_unet_single_blocks_3_linear1.lora_up.weight": up}
    with pytest.raises(WeightsError, match="would differ"):
        verify(rules_for("kohya", meta), moved, state, meta)


@pytest.mark.parametrize("family", families().values(), ids=families())
def test_every_family_has_rules_and_an_unknown_format_is_rejected(family) -> None:
    assert {"comfy", "diffusers"} & family.names.readers.keys()
    with pytest.raises(WeightsError, match="has no adapters in the format auto1111"):
        rules_for("auto1111", {"family": family.name})
