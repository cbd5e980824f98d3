"""Chroma has the checkpoint's parameters, keeps samples apart, and computes no more than it must."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from flowloom.nn.attention import rotate, rotation_table
from flowloom.nn.blocks import RMSNorm, modulate
from flowloom.nn.chroma import CHROMA1, Chroma, ChromaParams, params_from_shapes
from flowloom.nn.patches import image_ids
from flowloom.nn.recompute import Recompute
from flowloom.nn.tiny import TINY


def shapes(params: ChromaParams) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Chroma(params).state_dict().items()}


def test_the_released_network_has_its_643_tensors():
    found = shapes(CHROMA1)
    expected = released_shapes()
    assert len(expected) == 643
    assert found == expected
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 8_899_983_424


def released_shapes() -> dict[str, tuple[int, ...]]:
    """The checkpoint's names and shapes, written down independently of the network."""
    layers: dict[str, tuple[int, int]] = {
        "img_in": (3072, 64),
        "txt_in": (3072, 4096),
        "final_layer.linear": (64, 3072),
        "distilled_guidance_layer.in_proj": (5120, 64),
        "distilled_guidance_layer.out_proj": (3072, 5120),
    }
    scales: dict[str, tuple[int]] = {}
    for i in range(5):
        layers[f"distilled_guidance_layer.layers.{i}.in_layer"] = (5120, 5120)
        layers[f"distilled_guidance_layer.layers.{i}.out_layer"] = (5120, 5120)
        scales[f"distilled_guidance_layer.norms.{i}.scale"] = (5120,)
    for i in range(19):
        for stream in (f"double_blocks.{i}.img", f"double_blocks.{i}.txt"):
            layers[f"{stream}_attn.qkv"] = (9216, 3072)
            layers[f"{stream}_attn.proj"] = (3072, 3072)
            layers[f"{stream}_mlp.0"] = (12288, 3072)
            layers[f"{stream}_mlp.2"] = (3072, 12288)
            scales[f"{stream}_attn.norm.query_norm.scale"] = (128,)
            scales[f"{stream}_attn.norm.key_norm.scale"] = (128,)
    for i in range(38):
        layers[f"single_blocks.{i}.linear1"] = (21504, 3072)
        layers[f"single_blocks.{i}.linear2"] = (3072, 15360)
        scales[f"single_blocks.{i}.norm.query_norm.scale"] = (128,)
        scales[f"single_blocks.{i}.norm.key_norm.scale"] = (128,)
    weights = {f"{name}.weight": shape for name, shape in layers.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in layers.items()} | scales


@pytest.mark.parametrize("params", [CHROMA1, TINY])
def test_sizes_are_read_from_names_and_shapes(params: ChromaParams):
    assert params_from_shapes(shapes(params)) == params


def test_sizes_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="do not make up width 128"):
        Chroma(ChromaParams(16, 24, 128, 4.0, 2, 1, 1, (4, 14, 14), 10_000, True, 32, 1, 16))


def test_a_sample_is_the_same_alone_and_in_any_batch(
    chroma: Chroma, inputs: dict[str, Tensor], lengths_mask: Tensor
):
    together = chroma(**inputs, text_mask=lengths_mask)
    for i, length in enumerate(lengths_mask.sum(1).tolist()):
        alone = {k: v if k == "image_ids" else v[i : i + 1] for k, v in inputs.items()}
        alone["text"] = alone["text"][:, :length]
        torch.testing.assert_close(chroma(**alone)[0], together[i], atol=1e-5, rtol=0)


def test_one_noise_level_and_guidance_serve_all_samples(chroma: Chroma, inputs: dict[str, Tensor]):
    inputs.pop("noise_level")
    each = chroma(**inputs, noise_level=torch.full((3,), 0.4), guidance=torch.full((3,), 2.0))
    for shared in ([0.4], [0.4, 0.4, 0.4]):
        found = chroma(**inputs, noise_level=torch.tensor(shared), guidance=torch.tensor([2.0]))
        torch.testing.assert_close(found, each)


def test_guidance_reaches_the_network_and_defaults_to_0(chroma: Chroma, inputs: dict[str, Tensor]):
    default = chroma(**inputs)
    assert torch.equal(default, chroma(**inputs, guidance=torch.zeros(3)))
    assert (default - chroma(**inputs, guidance=torch.full((3,), 3.0))).abs().max() > 1e-3


def test_the_approximator_never_learns(chroma: Chroma, inputs: dict[str, Tensor]):
    chroma.requires_grad_(True)
    chroma(**inputs).square().mean().backward()
    for name, parameter in chroma.named_parameters():
        assert (parameter.grad is None) == name.startswith("distilled_guidance_layer."), name


def test_blocks_are_named_in_order_of_execution(chroma: Chroma, inputs: dict[str, Tensor]):
    seen: list[nn.Module] = []
    for _, block in chroma.blocks():
        block.register_forward_hook(lambda block, *_: seen.append(block))
    chroma(**inputs)
    assert seen == [block for _, block in chroma.blocks()]
    assert [name for name, _ in chroma.blocks()] == [
        *(f"double_blocks.{i}" for i in range(2)),
        *(f"single_blocks.{i}" for i in range(3)),
    ]
    assert all(chroma.get_submodule(name) is block for name, block in chroma.blocks())


@contextmanager
def counting_saved_bytes(chroma: Chroma) -> Iterator[dict[int, int]]:
    """Bytes of activations, by address, that are kept for the backward pass inside."""
    weights = {parameter.data_ptr() for parameter in chroma.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def kept_bytes(chroma: Chroma, inputs: dict[str, Tensor]) -> int:
    with counting_saved_bytes(chroma) as kept:
        output = chroma(**inputs)
    output.sum().backward()
    return sum(kept.values())


def test_each_recomputed_block_keeps_less(make_chroma: Callable[[], Chroma], inputs: dict[str, Tensor]):
    kept = []
    for blocks in (0, 1, 3, 5):
        chroma = make_chroma()
        chroma.recompute = Recompute(blocks)
        kept.append(kept_bytes(chroma, inputs))
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] < kept[0] / 5


def test_blocks_below_the_lowest_trained_one_keep_nothing(
    make_chroma: Callable[[], Chroma], inputs: dict[str, Tensor]
):
    kept = []
    for trained in ("single_blocks.2.", "single_blocks.0."):
        chroma = make_chroma()
        for name, parameter in chroma.named_parameters():
            parameter.requires_grad = name.startswith(trained)
        kept.append(kept_bytes(chroma, inputs))
    assert kept[0] < kept[1] / 2


def test_recomputation_is_spent_on_blocks_that_need_gradients(
    make_chroma: Callable[[], Chroma], inputs: dict[str, Tensor]
):
    kept = []
    for blocks in (0, 1):
        chroma = make_chroma()
        chroma.recompute = Recompute(blocks)
        for name, parameter in chroma.named_parameters():
            parameter.requires_grad = name.startswith("single_blocks.2.")
        kept.append(kept_bytes(chroma, inputs))
    assert kept[1] < kept[0] / 2


def operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_recomputation_leaves_out_the_last_product_of_each_block(
    make_chroma: Callable[[], Chroma], inputs: dict[str, Tensor]
):
    keeps, recomputes = make_chroma(), make_chroma()
    recomputes.recompute = Recompute(len(recomputes.blocks()))
    again = operations(recomputes(**inputs).sum().backward) - operations(keeps(**inputs).sum().backward)
    params, samples, image, text = keeps.params, 3, 12, 9
    left_out = params.depth * 4 * image + params.depth_single_blocks * 5 * (image + text)
    in_blocks = (params.depth + params.depth_single_blocks) * 12 * (image + text)
    # Attention itself is recomputed too; on CPU the counter does not see it.
    assert again == 2 * samples * (in_blocks - left_out) * params.hidden_size**2


def test_bfloat16_is_float32_rounded(chroma: Chroma, inputs: dict[str, Tensor]):
    exact = chroma(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = chroma(**inputs)
    low = chroma.to(torch.bfloat16)(
        inputs["latents"].bfloat16(), inputs["noise_level"], inputs["text"].bfloat16(), inputs["image_ids"]
    )
    assert low.dtype == torch.bfloat16
    assert (mixed.float() - exact).abs().max() < 0.05 * exact.abs().max()
    assert (low.float() - exact).abs().max() < 0.08 * exact.abs().max()


def test_norms_of_bfloat16_stay_bfloat16_where_autocast_would_widen_them():
    """On CUDA it would; tensors without storage tell, on any machine, which kernels would run there."""
    was_enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(2, 4, 8, device="cuda", dtype=torch.bfloat16)
        norm = RMSNorm(8)
        norm.scale = nn.Parameter(torch.empty(8, device="cuda", dtype=torch.bfloat16), requires_grad=False)
        try:
            torch.set_autocast_enabled("cuda", True)
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            widened = functional.layer_norm(x, (8,))
            found = norm(x), modulate(x, x, x)
            is_still_enabled = torch.is_autocast_enabled("cuda")
        finally:
            torch.set_autocast_enabled("cuda", was_enabled)
            torch.set_autocast_dtype("cuda", dtype)
    assert widened.dtype == torch.float32
    assert [one.dtype for one in found] == [torch.bfloat16] * 2
    assert is_still_enabled


def test_a_network_that_generated_images_can_be_trained(chroma: Chroma, inputs: dict[str, Tensor]):
    with torch.inference_mode():
        generated = chroma(**inputs)
    trained = chroma(**inputs)
    trained.sum().backward()
    torch.testing.assert_close(trained, generated.clone())


def test_positions_are_distinguished(chroma: Chroma, inputs: dict[str, Tensor]):
    wide, high = inputs | {"image_ids": image_ids(6, 8)}, inputs
    outputs = [chroma(**chosen) for chosen in (high, wide, high)]
    assert torch.equal(outputs[0], outputs[2])
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_attention_sees_only_how_far_apart_tokens_are():
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 2, 32, generator=draw) for _ in range(2))

    def score(positions: list[list[float]]) -> Tensor:
        rotation = rotation_table(torch.tensor(positions), (4, 14, 14), 10_000)
        return (rotate(q, rotation) @ rotate(k, rotation).mT)[0, 0, 0, 1]

    near = score([[0, 1, 2], [0, 4, 9]])
    torch.testing.assert_close(near, score([[0, 51, 22], [0, 54, 29]]), atol=1e-4, rtol=0)
    assert abs(near - score([[0, 1, 2], [0, 4, 10]])) > 1e-2


def test_rotation_is_the_same_when_compiled():
    x = torch.randn(2, 3, 5, 32, generator=torch.Generator().manual_seed(0))
    rotation = rotation_table(image_ids(2, 10), (4, 14, 14), 10_000)
    traced = torch.compile(rotate, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x, rotation), rotate(x, rotation))
