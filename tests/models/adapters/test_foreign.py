"""Adapter files of other trainers: each is read with the effect that its own program gives it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowloom.errors import WeightsError
from flowloom.models.adapters.adapter import Adapter
from flowloom.models.adapters.read import load_onto, read_adapter
from flowloom.models.families.chroma import NAMES
from flowloom.models.weights import save_weights

Tensors = dict[str, Tensor]
RANK, ALPHA = 4, 6.0


def plain(adapter: Adapter) -> dict[str, Tensors]:
    """A and B by layer."""
    layers: dict[str, Tensors] = {}
    for name, tensor in adapter.state_dict().items():
        layer, _, side = name.removesuffix(".weight").rpartition(".lora_")
        layers.setdefault(layer, {})[side] = tensor
    return layers


def cut(layers: dict[str, Tensors]) -> dict[str, Tensors]:
    """The same by diffusers' names, q, k, v and the MLP each a separate layer."""
    found: dict[str, Tensors] = {}
    for layer, sides in layers.items():
        theirs = NAMES.to_diffusers(layer)
        width, rows = sides["A"].shape[1], sides["B"].shape[0]
        sizes = [rows] if len(theirs) == 1 else [width, width, width, rows - 3 * width][: len(theirs)]
        for part, up in zip(theirs, sides["B"].split(sizes), strict=True):
            found[part] = {"A": sides["A"].clone(), "B": up.clone()}
    return found


def spelled(
    layers: dict[str, Tensors], name: Callable[[str], str], down: str, up: str, alpha: bool
) -> Tensors:
    tensors: Tensors = {}
    for layer, sides in layers.items():
        tensors |= {f"{name(layer)}.{down}": sides["A"], f"{name(layer)}.{up}": sides["B"]}
        tensors |= {f"{name(layer)}.alpha": torch.tensor(ALPHA)} if alpha else {}
    return tensors


def flat(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer.replace(".", "_")


def dotted(prefix: str) -> Callable[[str], str]:
    return lambda layer: prefix + layer


DOWN, UP, A, B = "lora_down.weight", "lora_up.weight", "lora_A.weight", "lora_B.weight"
OLD, NAMED = ("lora.down.weight", "lora.up.weight"), ("lora_A.default.weight", "lora_B.default.weight")
PEFT = {"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {}, "use_rslora": False}
PROGRAMS: dict[str, tuple[Callable[[dict[str, Tensors]], Tensors], dict[str, str]]] = {
    "sd-scripts": (lambda x: spelled(x, flat("lora_unet_"), DOWN, UP, True), {}),
    "musubi": (lambda x: spelled(x, flat("lora_transformer_"), DOWN, UP, True), {}),
    "OneTrainer, legacy": (lambda x: spelled(cut(x), flat("lora_transformer_"), DOWN, UP, True), {}),
    "OneTrainer, internal": (lambda x: spelled(cut(x), dotted("transformer."), DOWN, UP, True), {}),
    "OneTrainer, comfy": (lambda x: spelled(x, dotted("diffusion_model."), A, B, True), {}),
    "OneTrainer, original": (lambda x: spelled(x, dotted(""), A, B, True), {}),
    "SimpleTuner": (lambda x: spelled(cut(x), dotted("transformer.base_model.model."), *OLD, True), {}),
    "SimpleTuner, comfyui": (lambda x: spelled(cut(x), dotted("diffusion_model."), A, B, True), {}),
    "SimpleTuner and diffusers": (
        lambda x: spelled(cut(x), dotted("transformer."), A, B, False),
        {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in PEFT.items()})},
    ),
    "LyCORIS wrapper": (lambda x: spelled(cut(x), flat("lycoris_"), DOWN, UP, True), {}),
    "diffusion-pipe": (lambda x: spelled(x, dotted("diffusion_model."), A, B, True), {}),
    "peft of several adapters": (lambda x: spelled(cut(x), dotted("base_model.model."), *NAMED, True), {}),
}  # fmt: skip
TARGETS = ["double_blocks", "single_blocks", "img_in", "txt_in", "final_layer"]


@pytest.fixture
def trained(make_network, attach_trained, weights_of):
    """A trained LoRA, and the weights that the network computes with."""
    network = make_network()
    adapter = attach_trained(network, "lora", rank=RANK, alpha=ALPHA, targets=TARGETS)
    return adapter, weights_of(network, adapter)


@pytest.fixture
def assert_reads(make_network, weights_of):
    def check(path: Path, expected: Tensors) -> Adapter:
        network = make_network()
        adapter = load_onto(network, path)
        found = weights_of(network, adapter)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            torch.testing.assert_close(found[name], weight, rtol=0, atol=3e-6)
        return adapter

    return check


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_files_of_other_programs_are_read(program, trained, assert_reads, tmp_path: Path) -> None:
    write, metadata = PROGRAMS[program]
    adapter, expected = trained
    path = tmp_path / "a.safetensors"
    save_weights(path, write(plain(adapter)), metadata)
    assert assert_reads(path, expected).metadata["notes"] == []


TEXT_ENCODERS = {
    "sd-scripts": "lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight",
    "sd-scripts, CLIP": "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
    "OneTrainer": "lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight",
    "OneTrainer, comfy": "text_encoders.t5xxl.transformer.encoder.block.0.layer.1.wo.lora_A.weight",
    "OneTrainer, embedding": "bundle_emb.<fox>.t5_out",
    "diffusers": "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight",
}  # fmt: skip


@pytest.mark.parametrize("program", TEXT_ENCODERS)
def test_tensors_of_a_text_encoder_are_left_out_and_reported(
    program, trained, assert_reads, tmp_path: Path
) -> None:
    adapter, expected = trained
    tensors = PROGRAMS["sd-scripts"][0](plain(adapter))
    name = TEXT_ENCODERS[program]
    path = tmp_path / "a.safetensors"
    save_weights(path, tensors | {name: torch.zeros(4, 4)}, {})
    (note,) = assert_reads(path, expected).metadata["notes"]
    assert "not used here (1 of a text encoder or of trained embeddings" in note
    assert name in note


def flow_file(adapter: Adapter, path: Path) -> Tensors:
    """As FLOW's trainer writes it: a pickle in bfloat16, without alpha."""
    tensors = {
        f"{layer}.lora.lora_{side}": tensor.bfloat16()
        for layer, sides in plain(adapter).items()
        for side, tensor in sides.items()
    }
    torch.save(tensors, path)
    return tensors


@pytest.mark.parametrize("is_beside", [True, False], ids=["with its configuration", "alone"])
def test_flows_own_adapter_is_read(is_beside, trained, make_network, weights_of, tmp_path: Path) -> None:
    adapter, _ = trained
    path = tmp_path / "2026-11-30_12-00-00_lora.pth"
    tensors = flow_file(adapter, path)
    if is_beside:
        (tmp_path / "training_config.json").write_text(json.dumps({"lora": {"rank": RANK, "alpha": ALPHA}}))
    network = make_network()
    loaded = load_onto(network, path)
    scale = ALPHA / RANK if is_beside else 1.0
    for name, weight in weights_of(network, loaded).items():
        down, up = (tensors[f"{name}.lora.lora_{side}"].float() for side in "AB")
        torch.testing.assert_close(weight, loaded.base_weight(name) + scale * up @ down, rtol=0, atol=3e-6)
    notes = loaded.metadata["notes"]
    assert ["alpha is taken to be the rank" in note for note in notes] == ([] if is_beside else [True])


def test_flows_configuration_of_another_rank_says_nothing(trained, tmp_path: Path) -> None:
    flow_file(trained[0], tmp_path / "x_lora.pth")
    (tmp_path / "training_config.json").write_text(json.dumps({"lora": {"rank": 16, "alpha": 32}}))
    _, meta = read_adapter(tmp_path / "x_lora.pth")
    assert (meta["rank"], meta["alpha"]) == (RANK, float(RANK))
    assert "alpha is taken to be the rank" in meta["notes"][0]


def test_pefts_configuration_gives_each_layer_its_alpha(trained, tmp_path: Path) -> None:
    """`proj_out` is also the end of a name in every single block; with ^ it is the final layer alone."""
    tensors = spelled(cut(plain(trained[0])), dotted("base_model.model."), A, B, False)
    save_weights(tmp_path / "adapter_model.safetensors", tensors, {})

    def alphas(**config) -> dict[str, float]:
        (tmp_path / "adapter_config.json").write_text(json.dumps(PEFT | config))
        _, meta = read_adapter(tmp_path / "adapter_model.safetensors")
        sites = {name: alpha for name, (_, alpha) in meta.get("sites", {}).items()}
        return {name: sites.get(name, meta["alpha"]) for name in meta["targets"]}

    assert set(alphas().values()) == {ALPHA}
    assert alphas(use_rslora=True)["img_in"] == ALPHA * 2  # alpha / sqrt(4) is twice alpha / 4
    ends, whole = alphas(alpha_pattern={"proj_out": 9}), alphas(alpha_pattern={"^proj_out": 9})
    assert {name for name, alpha in ends.items() if alpha == 9} == {
        "final_layer.linear", "single_blocks.0.linear2", "single_blocks.1.linear2"
    }  # fmt: skip
    assert {name for name, alpha in whole.items() if alpha == 9} == {"final_layer.linear"}


def test_an_alpha_of_0_is_none_as_for_sd_scripts_and_lycoris(trained, tmp_path: Path) -> None:
    tensors = PROGRAMS["sd-scripts"][0](plain(trained[0]))
    tensors = {name: t * 0 if name.endswith("alpha") else t for name, t in tensors.items()}
    save_weights(tmp_path / "a.safetensors", tensors, {})
    assert read_adapter(tmp_path / "a.safetensors")[1]["alpha"] == RANK


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_"])
def test_adapters_of_the_approximator_are_read_and_exported(
    prefix, make_network, weights_of, tmp_path
) -> None:
    """OneTrainer adapts every linear layer by default."""
    network = make_network()
    generator = torch.Generator().manual_seed(0)
    tensors, deltas = {}, {}
    for ours, theirs in {
        "in_proj": "in_proj",
        "layers.1.in_layer": "layers.1.linear_1",
        "layers.0.out_layer": "layers.0.linear_2",
    }.items():  # fmt: skip
        rows, columns = network.get_submodule(f"distilled_guidance_layer.{ours}").weight.shape
        a, b = torch.randn(2, columns, generator=generator), torch.randn(rows, 2, generator=generator)
        layer = ours if prefix == "lora_unet_" else theirs
        name = f"{prefix}distilled_guidance_layer_{layer.replace('.', '_')}"
        tensors |= {f"{name}.{DOWN}": a, f"{name}.{UP}": b}
        deltas[f"distilled_guidance_layer.{ours}"] = b @ a
    save_weights(tmp_path / "a.safetensors", tensors, {})
    adapter = load_onto(network, tmp_path / "a.safetensors")
    found = weights_of(network, adapter)
    assert found.keys() == deltas.keys()
    for name, delta in deltas.items():
        torch.testing.assert_close(found[name], adapter.base_weight(name) + delta, rtol=0, atol=3e-6)


def test_a_lokr_of_diffusers_cut_layers_is_put_together(make_network, weights_of, tmp_path: Path) -> None:
    """As SimpleTuner writes it by LyCORIS: q and v adapted apart."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tensors, expected = {}, {}
    network = make_network()
    qkv = network.double_blocks[0].img_attn.qkv.weight.detach().clone()
    for part, start in (("to_q", 0), ("to_v", 128)):
        w1, a, b = normal(2, 2), normal(32, 3), normal(3, 32)
        name = f"lycoris_transformer_blocks_0_attn_{part}"
        tensors |= {f"{name}.lokr_w1": w1, f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b}
        tensors[f"{name}.alpha"] = torch.tensor(6.0)
        qkv[start : start + 64] += 2 * torch.kron(w1, a @ b)
    expected[QKV] = qkv
    save_weights(tmp_path / "a.safetensors", tensors, {})
    found = weights_of(network, load_onto(network, tmp_path / "a.safetensors"))
    torch.testing.assert_close(found[QKV], expected[QKV], rtol=0, atol=1e-5)


QKV = "double_blocks.0.img_attn.qkv"
X = "diffusion_model.single_blocks.0.linear1"
LORA = {f"{X}.{A}": torch.zeros(2, 64), f"{X}.{B}": torch.zeros(448, 2)}
REFUSED = {
    "LoHa": ({f"{X}.hada_w1_a": torch.zeros(2, 2), f"{X}.hada_w1_b": torch.zeros(2, 2)}, "its kind is LoHa"),
    "OFT": ({f"{X}.oft_blocks": torch.zeros(2, 2, 2)}, "its kind is OFT"),
    "FLUX": (
        LORA | {f"lora_unet_double_blocks_0_img_mod_lin.{DOWN}": torch.zeros(2, 64)},
        r"1 of 3 tensors adapt layers that Chroma does not have \(lora_unet_double_blocks_0_img.*another",
    ),
    "a bias": (LORA | {f"{X}.diff_b": torch.zeros(448)}, r"not a LoRA, DoRA or LoKr.*linear1\.diff_b"),
    "text encoder alone": ({f"lora_te_x.{DOWN}": torch.zeros(2, 2)}, r"for a text encoder \(lora_te_x"),
    "two names": (
        LORA | {f"transformer.single_transformer_blocks.0.attn.to_q.{A}": torch.zeros(2, 64)}, "several names"
    ),
    "half": ({f"{X}.{A}": torch.zeros(2, 64)}, r"single_blocks\.0\.linear1 has no lora_B\.weight"),
    "LoKr with scales": (
        {f"{X}.lokr_w1": torch.zeros(8, 8), f"{X}.lokr_w2": torch.zeros(56, 8)}
        | {f"{X}.dora_scale": torch.zeros(448, 1)},
        "LoKr with DoRA scales",
    ),
    "large LoKr of a part": (
        {f"lycoris_transformer_blocks_0_attn_to_q.lokr_w{i}": torch.ones(8, 8) for i in (1, 2)},
        "adapts parts of it apart",
    ),
    "a DoRA and a LoRA": (
        {
            f"transformer.transformer_blocks.0.attn.to_{part}.lora_{side}.weight": torch.ones(shape)
            for part in "qkv"
            for side, shape in (("A", (2, 64)), ("B", (64, 2)))
        }
        | {"transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector.weight": torch.ones(64)},
        "some of its rows have a dora, others a lora",
    ),
    "mixed": (
        {
            "lycoris_transformer_blocks_0_attn_to_q.lokr_w1": torch.ones(8, 8),
            "lycoris_transformer_blocks_0_attn_to_q.lokr_w2": torch.ones(8, 8),
            "lycoris_transformer_blocks_0_attn_to_k.lora_down.weight": torch.ones(2, 64),
            "lycoris_transformer_blocks_0_attn_to_k.lora_up.weight": torch.ones(64, 2),
        },
        "some of its rows have a lokr, others a lora",
    ),
    "half a LoKr": ({f"{X}.lokr_w1": torch.zeros(2, 2), f"{X}.lokr_w2_a": torch.zeros(2, 2)}, "no lokr_w2_b"),
    "ranks": ({f"{X}.{A}": torch.zeros(2, 64), f"{X}.{B}": torch.zeros(448, 3)}, "their ranks differ"),
    "a convolution": (
        {f"{X}.{A}": torch.zeros(2, 64, 1, 1), f"{X}.{B}": torch.zeros(448, 2, 1, 1)}, "not a matrix"
    ),
    "scales": (LORA | {f"{X}.dora_scale": torch.zeros(64, 1)}, "64 DoRA scales for 448 rows"),
    "columns": (LORA | {f"{X}.dora_scale": torch.zeros(1, 64)}, "norms over columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_read_are_refused_with_the_reason(case, tmp_path: Path) -> None:
    tensors, said = REFUSED[case]
    save_weights(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(WeightsError, match=said):
        read_adapter(tmp_path / "a.safetensors")
