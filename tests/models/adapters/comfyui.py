"""The weights that ComfyUI computes from an adapter file, by its rules."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def loaded_as_comfyui_does(
    path: Path, base: dict[str, Tensor], divides_by_sum: bool = False
) -> dict[str, Tensor]:
    """ComfyUI's rules, written down from what it does: names, scale, DoRA by the base's norms, LoKr.

    Args:
        divides_by_sum: DoRA by the norms of the adapted weights, as its pull request 15458 proposes.
    """
    file, weights, used = load_file(path), dict(base), set()
    for name in base:
        layer = name.removesuffix(".weight")
        prefixes = f"diffusion_model.{layer}.", f"lora_unet_{layer.replace('.', '_')}."
        found = {key: prefix for prefix in prefixes for key in file if key.startswith(prefix)}
        if not found:
            continue
        used |= found.keys()
        own = {
            key.removeprefix(prefix).replace("lora_up", "lora_B").replace("lora_down", "lora_A"): file[key]
            for key, prefix in found.items()
        }
        rank = None
        if "lora_B.weight" in own:
            delta, rank = own["lora_B.weight"] @ own["lora_A.weight"], own["lora_A.weight"].shape[0]
        else:
            first = own.get("lokr_w1")
            if first is None:
                first, rank = own["lokr_w1_a"] @ own["lokr_w1_b"], own["lokr_w1_b"].shape[0]
            second = own.get("lokr_w2")
            if second is None:
                second, rank = own["lokr_w2_a"] @ own["lokr_w2_b"], own["lokr_w2_b"].shape[0]
            delta = torch.kron(first, second)
        delta = delta * (own["alpha"].item() / rank if rank and "alpha" in own else 1.0)
        total = base[name] + delta
        if "dora_scale" in own:
            assert own["dora_scale"].shape == (total.shape[0], 1), "another shape means norms over columns"
            divisor = total if divides_by_sum else base[name]
            norm = divisor.norm(dim=1, keepdim=True) + torch.finfo(torch.float32).eps
            total = total * (own["dora_scale"] / norm)
        weights[name] = total
    assert used == file.keys()
    return weights
