"""LoRA, DoRA and LoKr: start as nothing, train alone, can be switched off, come back bit for bit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from flowloom.errors import ConfigError, WeightsError
from flowloom.models.adapters.adapter import attach
from flowloom.nn.recompute import Recompute

KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "lokr"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
TARGETS = ["double_blocks", "single_blocks"]


def autocast(dtype: torch.dtype) -> torch.autocast:
    """As the engine does: bf16 arithmetic over a bf16 base and a float32 adapter."""
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16)


@KINDS
@DTYPES
def test_an_untrained_adapter_changes_nothing(kind, dtype, make_network, inputs) -> None:
    network = make_network().to(dtype)
    with torch.no_grad(), autocast(dtype):
        before = network(*inputs)
        attach(network, kind, 4, 2.0, TARGETS)
        after = network(*inputs)
    # DoRA divides by the norm that it multiplies with.
    torch.testing.assert_close(
        after, before, rtol=0, atol=0 if kind != "dora" else 1e-6 if dtype == torch.float32 else 0.02
    )


@KINDS
def test_adapts_every_matching_linear_layer_and_never_the_approximator(kind, make_network) -> None:
    network = make_network()
    linears = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    adapter = attach(network, kind, 4, 4, ["attn.qkv", "single_blocks", "layer"])
    wanted = {n for n in linears if "attn.qkv" in n or "single_blocks" in n or n == "final_layer.linear"}
    assert set(adapter.layers) == wanted
    assert len(wanted) == 2 * 2 + 2 * 2 + 1
    trained = {id(parameter) for parameter in adapter.parameters.values()}
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name


def test_canonical_names_are_the_base_layers_with_the_formats_suffix(make_network) -> None:
    names = {
        kind: list(attach(make_network(), kind, 4, 4, ["0.img_attn.qkv"]).parameters)
        for kind in ("lora", "dora", "lokr")
    }
    layer = "double_blocks.0.img_attn.qkv"
    assert names["lora"] == [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"]
    assert names["dora"] == [f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.dora_scale"]
    assert names["lokr"] == [f"{layer}.lokr_w1", f"{layer}.lokr_w2_a", f"{layer}.lokr_w2_b"]


def test_a_target_that_matches_nothing_is_an_error_that_names_the_parts(make_network) -> None:
    with pytest.raises(ConfigError, match=r"lora\.target_layers.*double_blocks") as caught:
        attach(make_network(), "lora", 4, 4, ["distilled_guidance_layer", "blocs"])
    assert "distilled" not in str(caught.value).split("Parts are")[1]


@KINDS
@DTYPES
def test_trains_float32_weights_over_any_base(kind, dtype, make_network, inputs) -> None:
    network = make_network().to(dtype)
    adapter = attach(network, kind, 4, 4, TARGETS)
    assert {parameter.dtype for parameter in adapter.parameters.values()} == {torch.float32}
    frozen = {name: p.clone() for name, p in network.named_parameters() if not p.requires_grad}
    losses = train(network, adapter, inputs, dtype, steps=8)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in network.named_parameters():
        if name in frozen:
            assert torch.equal(parameter, frozen[name]), name


def train(network, adapter, inputs, dtype, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=1e-2)
    target = torch.randn(2, 12, 16, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(steps):
        with autocast(dtype):
            loss = (network(*inputs).float() - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@KINDS
@DTYPES
def test_disabled_is_exactly_the_base(kind, dtype, make_network, inputs, attach_trained) -> None:
    network = make_network().to(dtype)
    with torch.no_grad(), autocast(dtype):
        base = network(*inputs)
        adapter = attach_trained(network, kind)
        with_it = network(*inputs)
        with adapter.disabled():
            without = network(*inputs)
        again = network(*inputs)
    assert torch.equal(without, base)
    assert torch.equal(again, with_it)
    assert (with_it - base).abs().max() > 0.05
    assert all(parameter.requires_grad for parameter in adapter.parameters.values())


@KINDS
def test_state_goes_round_bit_for_bit(kind, make_network, inputs, attach_trained, tmp_path: Path) -> None:
    first, second = make_network(), make_network()
    adapter = attach_trained(first, kind)
    torch.save(adapter.state_dict(), tmp_path / "adapter.pt")
    attach(second, kind, 4, 2.0, adapter.metadata["targets"]).load_state_dict(
        torch.load(tmp_path / "adapter.pt", weights_only=True)
    )
    with torch.no_grad():
        assert torch.equal(first(*inputs), second(*inputs))


@KINDS
def test_a_state_of_another_adapter_is_refused(kind, make_network) -> None:
    adapter = attach(make_network(), kind, 4, 4, TARGETS)
    fewer = attach(make_network(), kind, 4, 4, ["double_blocks"]).state_dict()
    narrower = attach(make_network(), kind, 2, 4, TARGETS).state_dict()
    for state in (fewer, narrower, {}):
        with pytest.raises(WeightsError, match="do not belong to"):
            adapter.load_state_dict(state)


@pytest.mark.parametrize("alpha", [4, 1, 7.5, 64])
def test_alpha_scales_by_alpha_over_rank(alpha: float, make_network, inputs, attach_trained) -> None:
    """Against the formula written out: W + alpha / rank * B A, for one layer."""
    network, plain = make_network(), make_network()
    adapter = attach_trained(network, "lora", rank=4, alpha=alpha, targets=["img_in"])
    a, b = adapter.parameters["img_in.lora_A.weight"], adapter.parameters["img_in.lora_B.weight"]
    with torch.no_grad():
        plain.img_in.weight += alpha / 4 * b @ a
        torch.testing.assert_close(network(*inputs), plain(*inputs), rtol=0, atol=1e-5)


def test_dora_gives_each_row_the_norm_it_learns(make_network, inputs, attach_trained) -> None:
    network, plain = make_network(), make_network()
    adapter = attach_trained(network, "dora", rank=4, alpha=6, targets=["img_in"])
    a, b, m = (adapter.parameters[f"img_in.{s}"] for s in ("lora_A.weight", "lora_B.weight", "dora_scale"))
    with torch.no_grad():
        total = plain.img_in.weight + 6 / 4 * b @ a
        plain.img_in.weight.copy_(m[:, None] * total / total.norm(dim=1, keepdim=True))
        torch.testing.assert_close(network(*inputs), plain(*inputs), rtol=0, atol=1e-5)


def test_lokr_adds_a_kronecker_product(make_network, inputs, attach_trained) -> None:
    network, plain = make_network(), make_network()
    adapter = attach_trained(network, "lokr", rank=2, alpha=6, targets=["double_blocks.0.img_mlp.0"])
    w1, a, b = (adapter.parameters[f"double_blocks.0.img_mlp.0.lokr_{s}"] for s in ("w1", "w2_a", "w2_b"))
    with torch.no_grad():
        plain.double_blocks[0].img_mlp[0].weight += 6 / 2 * torch.kron(w1, a @ b)
        torch.testing.assert_close(network(*inputs), plain(*inputs), rtol=0, atol=1e-5)


@KINDS
def test_first_weights_follow_from_the_seed_and_disturb_no_stream(kind, make_network) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = attach(make_network(), kind, 4, 4, TARGETS).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    two = attach(make_network().to(torch.bfloat16), kind, 4, 4, TARGETS).state_dict()
    for name in one:
        if "dora_scale" not in name:  # the norms of a rounded base are others
            assert torch.equal(one[name], two[name]), name
    torch.manual_seed(6)
    other = attach(make_network(), kind, 4, 4, TARGETS).state_dict()
    assert any(not torch.equal(one[name], other[name]) for name in one)


@KINDS
def test_recomputing_blocks_gives_the_same_gradients(kind, make_network, inputs, attach_trained) -> None:
    gradients = []
    for recomputed in (0, 4):
        network = make_network()
        network.recompute = Recompute(recomputed)
        adapter = attach_trained(network, kind)
        network(*inputs).square().mean().backward()
        gradients.append({name: p.grad for name, p in adapter.parameters.items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)
