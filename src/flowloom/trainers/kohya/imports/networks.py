"""kohya_ss' `LoRA_type` and the form's keys that belong to it, as network_module and network_args."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowloom.json_types import is_array
from flowloom.trainers.kohya.imports.families import is_on
from flowloom.trainers.kohya.imports.result import Imported
from flowloom.trainers.kohya.imports.values import is_empty, number_of, words_of
from flowloom.trainers.kohya.known_keys import names

_BLOCKS = names(
    """
    down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold block_dims block_alphas conv_block_dims
    conv_block_alphas rank_dropout module_dropout
    """
)
_CONV, _DROP = ("conv_dim", "conv_alpha"), ("rank_dropout", "module_dropout")
_FLUX = names(
    """
    img_attn_dim img_mlp_dim img_mod_dim single_dim txt_attn_dim txt_mlp_dim txt_mod_dim single_mod_dim
    in_dims train_double_block_indices train_single_block_indices train_blocks split_qkv train_t5xxl
    ggpo_beta ggpo_sigma
    """
)
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
_LYCORIS = ("LyCORIS_preset", *_CONV, "use_tucker", *_DROP, "rank_dropout_scale", "train_norm")
_SCALED = (*_LYCORIS, "bypass_mode", "dora_wd", "use_scalar")
_NAMES = {"LyCORIS_preset": "preset", "constrain": "constraint"}


@dataclass(frozen=True)
class _Type:
    module: str
    keys: tuple[str, ...]
    algorithm: str = ""
    """LyCORIS gets all of its arguments, sd-scripts' modules only those that are not zero."""


_TYPES = {
    "Standard": _Type("networks.lora", _BLOCKS),
    "Kohya LoCon": _Type("networks.lora", (*_CONV, *_BLOCKS)),
    "LoRA-FA": _Type("networks.lora_fa", _BLOCKS),
    "Kohya DyLoRA": _Type("networks.dylora", (*_CONV, *_BLOCKS, "unit")),
    "Kohya LoHa": _Type("networks.loha", (*_CONV, *_DROP, "use_tucker")),
    "Kohya LoKr": _Type("networks.lokr", (*_CONV, *_DROP, "use_tucker", "factor")),
    "Flux1": _Type("networks.lora_flux", (*_FLUX, *_DROP)),
    "Flux1 OFT": _Type("networks.oft_flux", ("enable_all_linear",)),
    "SD3": _Type("networks.lora_sd3", (*_BLOCKS,)),
    "Lumina": _Type("networks.lora_lumina", _DROP),
    "LyCORIS/BOFT": _Type("lycoris.kohya", _LYCORIS, "boft"),
    "LyCORIS/Diag-OFT": _Type("lycoris.kohya", (*_LYCORIS, "constrain", "rescaled"), "diag-oft"),
    "LyCORIS/DyLoRA": _Type("lycoris.kohya", (*_LYCORIS, "unit"), "dylora"),
    "LyCORIS/GLoRA": _Type("lycoris.kohya", _LYCORIS, "glora"),
    "LyCORIS/iA3": _Type("lycoris.kohya", ("LyCORIS_preset", *_CONV, "train_on_input"), "ia3"),
    "LyCORIS/LoCon": _Type("lycoris.kohya", _SCALED, "locon"),
    "LyCORIS/LoHa": _Type("lycoris.kohya", _SCALED, "loha"),
    "LyCORIS/LoKr": _Type("lycoris.kohya", (*_SCALED, "factor", "use_cp", "decompose_both"), "lokr"),
    "LyCORIS/Native Fine-Tuning": _Type(
        "lycoris.kohya", ("LyCORIS_preset", *_DROP, "rank_dropout_scale", "train_norm"), "full"
    ),
}
_TYPES["LoCon"] = _TYPES["LyCORIS/LoCon"]
KEYS = frozenset(key for kind in _TYPES.values() for key in kind.keys) | {*_PLUS, "train_lora_ggpo"}
"""Keys of the form that become network_args of some type."""


@dataclass(frozen=True)
class Network:
    """The adapter that a form describes."""

    module: str
    args: list[str]


def has_algorithm(words: Any) -> bool:
    """True if network_args name an algorithm, which only LyCORIS accepts."""
    words = words_of(words)
    return is_array(words) and any(str(word).startswith("algo=") for word in words)


def network_of(form: Mapping[str, Any], family: str, found: Imported) -> Network | None:
    """The adapter, None if the form has no type; reports each key of KEYS in the form."""
    name = form.get("LoRA_type")
    kind = _TYPES.get(name) if isinstance(name, str) else None
    words: dict[str, str] = {}
    for key in [key for key in form if key in KEYS]:
        word = _word(key, form, kind)
        if word:
            words[key] = word
        else:
            _report_unused(key, form[key], kind, found)
    if kind is None:
        return None
    args = [
        word for key, word in words.items() if not (key == "train_blocks" and is_on(form.get("split_mode")))
    ]
    if kind.module == "networks.lora_flux" and is_on(form.get("split_mode")):
        args.append("train_blocks=single")
    if kind.algorithm:
        args.append(f"algo={kind.algorithm}")
    found.translated |= {key: f"network_args: {word}" for key, word in words.items()}
    module = "networks.lora_sd3" if name == "Standard" and family == "sd3" else kind.module
    found.translated["LoRA_type"] = (
        f"network_module = {module}{kind.algorithm and f', algo={kind.algorithm}'}"
    )
    return Network(module, args)


def _word(key: str, form: Mapping[str, Any], kind: _Type | None) -> str:
    """NAME=VALUE of a key; empty if it has no effect."""
    value = number_of(form[key])
    needs_switch = key.startswith("ggpo") and not is_on(form.get("train_lora_ggpo"))
    if kind is None or key not in (*kind.keys, *_PLUS) or is_empty(value) or needs_switch:
        return ""
    is_default = not value or str(value).lower() == "false" or (key == "factor" and value == -1)
    if is_default and (not kind.algorithm or key in _PLUS):
        return ""
    name = "block_size" if key == "unit" and kind.algorithm else _NAMES.get(key, key)
    return f"{name}={str(value).replace(' ', '')}"


def _report_unused(key: str, value: Any, kind: _Type | None, found: Imported) -> None:
    is_off = is_empty(value) or not number_of(value) or str(value).lower() == "false"
    if found.config["method"] == "full":
        found.unused[key] = "belongs to an adapter"
    elif kind is None and not is_off:
        found.leave(key, value, "needs LoRA_type, which is not stated or not known")
    elif kind is not None and (key in (*kind.keys, *_PLUS)):
        found.unused[key] = "has no effect with this value"
    else:
        found.unused[key] = "belongs to another LoRA type"
