"""The programs that load our files compute with the weights that we trained, each by its own rules."""

import contextlib
import io
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flowloom.models.adapters.adapter import attach
from flowloom.models.adapters.formats import save_adapter
from flowloom.models.adapters.read import load_onto, read_adapter
from flowloom.models.chroma_names import from_diffusers
from flowloom.models.quantized import quantize_base
from tests.models.adapters.comfyui import loaded_as_comfyui_does

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
EXACT = {"rtol": 0, "atol": 3e-6}


@pytest.fixture(params=["even", "alpha is rank", "uneven", "whole LoKr"])
def attach_any(request, attach_trained, attach_uneven):
    """Attaches an adapter: one rank and alpha, ranks and alphas by layer, LoKr of two whole factors."""

    def attach_it(network, kind):
        if request.param == "uneven":
            return attach_uneven(network, kind)
        if request.param == "whole LoKr":
            if kind != "lokr":
                pytest.skip("of LoKr alone")
            return attach_trained(network, kind, rank=1000, alpha=3.0)
        return attach_trained(network, kind, rank=4, alpha=4.0 if request.param == "alpha is rank" else 7.5)

    return attach_it


@pytest.fixture
def trained_and_file(make_network, attach_any, weights_of, tmp_path: Path):
    """The weights that an adapted network computes with, and the file written of it."""

    def make(kind, form) -> tuple[dict[str, Tensor], Path]:
        network = make_network()
        adapter = attach_any(network, kind)
        path = tmp_path / "adapter.safetensors"
        save_adapter(path, form, adapter.state_dict(), adapter.metadata, {}, adapter.base_weight)
        return weights_of(network, adapter), path

    return make


@KINDS
def test_comfyui_computes_with_the_trained_weights(kind, make_network, trained_and_file) -> None:
    trained, path = trained_and_file(kind, "comfy")
    base = make_network().state_dict()
    loaded = loaded_as_comfyui_does(path, base)
    for name, weight in trained.items():
        torch.testing.assert_close(loaded[f"{name}.weight"], weight, **EXACT)
        assert (weight - base[f"{name}.weight"]).abs().max() > 1e-3
    changed = {name for name in base if not torch.equal(loaded[name], base[name])}
    assert changed == {f"{name}.weight" for name in trained}


@pytest.mark.parametrize(
    ("form", "rule", "divides_by_sum"),
    [("comfy", "|W|", False), ("kohya", "|W + dW|", True), ("diffusers", "|W + dW|", True)],
)
def test_a_dora_names_the_rule_that_its_scales_follow(
    form, rule, divides_by_sum, make_network, trained_and_file
) -> None:
    """Were ComfyUI to change its rule, it would load the kohya form as trained."""
    trained, path = trained_and_file("dora", form)
    with safe_open(path, "pt") as file:
        said = file.metadata()
    assert f"adapted weights, {rule}" in said["modelspec.usage_hint"] or not divides_by_sum
    assert f"base weights, {rule}" in said["modelspec.usage_hint"] or divides_by_sum
    assert said["flowloom.dora_scale"] == ("over_sum" if divides_by_sum else "over_base")
    if form != "diffusers":
        loaded = loaded_as_comfyui_does(path, make_network().state_dict(), divides_by_sum)
        for name, weight in trained.items():
            torch.testing.assert_close(loaded[f"{name}.weight"], weight, **EXACT)


def test_only_a_dora_says_a_rule(trained_and_file) -> None:
    for kind in ("lora", "lokr"):
        _, path = trained_and_file(kind, "comfy")
        with safe_open(path, "pt") as file:
            assert not {"flowloom.dora_scale", "modelspec.usage_hint"} & set(file.metadata() or {})


def test_comfyui_adapts_a_row_of_zeros_of_a_dora(make_network, attach_trained, weights_of, tmp_path) -> None:
    network = make_network()
    network.img_in.weight.data[3] = 0
    base = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapter = attach_trained(network, "dora", targets=["img_in"])
    path = tmp_path / "a.safetensors"
    save_adapter(path, "comfy", adapter.state_dict(), adapter.metadata, {}, adapter.base_weight)
    loaded = loaded_as_comfyui_does(path, base)["img_in.weight"]
    torch.testing.assert_close(loaded, weights_of(network, adapter)["img_in"], **EXACT)


@KINDS
def test_lycoris_merges_the_trained_weights(kind, make_network, trained_and_file) -> None:
    from lycoris.utils import merge

    trained, path = trained_and_file(kind, "kohya")
    network = make_network()
    file = load_file(path)
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        merge([], network, dict(file))
    assert "Unused state dict key: {}" in said.getvalue()
    state = network.state_dict()
    for name, weight in trained.items():
        torch.testing.assert_close(state[f"{name}.weight"], weight, **EXACT)


@KINDS
def test_lycoris_network_computes_with_the_trained_weights(
    kind, make_network, inputs, trained_and_file
) -> None:
    """Its other way: the layers' forward, which sd-scripts uses to sample and to train on."""
    from lycoris.kohya import create_network_from_weights

    trained, path = trained_and_file(kind, "kohya")
    network, by_hand = make_network(), make_network()
    with contextlib.redirect_stdout(io.StringIO()):
        adapters, _ = create_network_from_weights(1.0, None, None, None, network, load_file(path))
    adapters.apply_to([], network, False, True)
    for name, weight in trained.items():
        by_hand.get_submodule(name).weight.data.copy_(weight)
    with torch.no_grad():
        torch.testing.assert_close(network(*inputs), by_hand(*inputs), rtol=0, atol=2e-5)


def fused_in_diffusers(pipeline, path: Path) -> dict[str, Tensor]:
    """Our names of the weights that the pipeline has when the file is loaded and fused."""
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora()
    state = pipeline.transformer.state_dict()
    bases = {name.replace(".base_layer", ""): t for name, t in state.items() if ".lora_" not in name}
    return from_diffusers(bases)


@KINDS
def test_diffusers_computes_with_the_trained_weights(
    kind, make_network, make_pipeline, trained_and_file
) -> None:
    trained, path = trained_and_file(kind, "diffusers")
    base = make_network().state_dict()
    fused = fused_in_diffusers(make_pipeline(base), path)
    assert fused.keys() == base.keys()
    for name in base:
        expected = trained.get(name.removesuffix(".weight"), base[name])
        torch.testing.assert_close(
            fused[name], expected, **EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")
@pytest.mark.parametrize("target", ["final_layer", "linear2", "img_in", "txt_mlp.2"])
def test_diffusers_adapts_no_layer_whose_name_ends_alike(
    target, make_network, make_pipeline, attach_trained, weights_of, tmp_path: Path
) -> None:
    """`proj_out` is the final layer, and the end of the name of a layer of every single block."""
    network = make_network()
    adapter = attach_trained(network, "lora", targets=[target])
    path = tmp_path / "a.safetensors"
    save_adapter(path, "diffusers", adapter.state_dict(), adapter.metadata, {})
    base = make_network().state_dict()
    fused = fused_in_diffusers(make_pipeline(base), path)
    trained = weights_of(network, adapter)
    for name in base:
        torch.testing.assert_close(
            fused[name], trained.get(name.removesuffix(".weight"), base[name]), **EXACT
        )


FORMS = ("comfy", "kohya", "diffusers")


@KINDS
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_way_through_all_forms_and_back_changes_no_weight(
    kind, order, make_network, attach_any, weights_of, tmp_path: Path
) -> None:
    network = make_network()
    adapter = attach_any(network, kind)
    trained, base = weights_of(network, adapter), adapter.base_weight
    state, meta = adapter.state_dict(), adapter.metadata
    for form in (FORMS[i] for i in order):
        path = tmp_path / f"{form}.safetensors"
        save_adapter(path, form, state, meta, {"ss_network_alpha": "1"}, base)
        other = make_network()
        found = weights_of(other, load_onto(other, path))
        assert found.keys() == trained.keys()
        for name, weight in trained.items():
            torch.testing.assert_close(found[name], weight, **EXACT)
        state, meta = read_adapter(path)


def test_a_lora_for_one_part_of_qkv_leaves_the_others_alone(make_network, attach_trained, tmp_path) -> None:
    """The rows of B that are zero: loaded by ComfyUI's rules, k and v stay those of the base."""
    network = make_network()
    adapter = attach(network, "lora", 4, 8.0, ["0.img_attn.qkv"])
    up = adapter.parameters["double_blocks.0.img_attn.qkv.lora_B.weight"]
    up.data[:64] = 1.0
    path = tmp_path / "a.safetensors"
    save_adapter(path, "comfy", adapter.state_dict(), adapter.metadata, {})
    base = make_network().state_dict()
    name = "double_blocks.0.img_attn.qkv.weight"
    loaded = loaded_as_comfyui_does(path, base)[name]
    assert torch.equal(loaded[64:], base[name][64:])
    assert not torch.equal(loaded[:64], base[name][:64])


@pytest.mark.parametrize("level", ["8bit", "4bit"])
def test_a_dora_trained_on_a_quantised_base_is_exported_by_the_weights_that_it_saw(
    level, make_network, attach_trained, weights_of, tmp_path: Path
) -> None:
    network = make_network()
    quantize_base(network, level)
    adapter = attach_trained(network, "dora", targets=["double_blocks.0"])
    base = make_network().state_dict()
    base |= {f"{name}.weight": adapter.base_weight(name) for name in adapter.layers}
    path = tmp_path / "a.safetensors"
    save_adapter(path, "comfy", adapter.state_dict(), adapter.metadata, {}, adapter.base_weight)
    loaded = loaded_as_comfyui_does(path, base)
    for name, weight in weights_of(network, adapter).items():
        torch.testing.assert_close(loaded[f"{name}.weight"], weight, rtol=0, atol=1e-5)
