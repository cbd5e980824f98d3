"""Arguments of sd-scripts without a field here; imports keep them as raw arguments."""

from __future__ import annotations

import shlex
from typing import Any

from flowloom.json_types import is_array


def names(text: str) -> tuple[str, ...]:
    """The names in `text`, because long lists are easier to read without quotes."""
    return tuple(text.split())


_FLAGS = frozenset(
    names(
        """
        apply_lg_attn_mask blockwise_fused_optimizers cache_info color_aug cpu_offload_checkpointing
        ddp_gradient_as_bucket_view ddp_static_graph debiased_estimation_loss debug_dataset deepspeed
        diffusers_xformers dim_from_weights disable_mmap_load_safetensors enable_scaled_pos_embed
        fp16_master_weights_and_gradients fp8_base_unet full_fp16 fused_backward_pass highvram
        ip_noise_gamma_random_strength log_config lowram masked_loss mem_eff_attn mem_eff_save
        network_train_text_encoder_only no_metadata no_token_padding noise_offset_random_strength
        persistent_data_loader_workers random_crop save_clip save_state_on_train_end save_t5xxl
        scale_v_pred_loss_like_noise_pred skip_cache_check skip_latents_validity_check
        skip_until_initial_step split_mode torch_compile train_inpainting train_t5xxl train_text_encoder
        use_flash_attn use_sage_attn use_t5xxl_cache_only v2 v_parameterization weighted_captions
        zero3_init_flag zero3_save_16bit_model zero_terminal_snr use_safetensors
        """
    )
)
_NUMBERS: dict[str, float | None] = {
    **dict.fromkeys(
        names(
            """
            adaptive_noise_scale caption_dropout_every_n_epochs clip_g_dropout_rate clip_l_dropout_rate
            ddp_timeout double_blocks_to_swap fused_optimizer_groups gemma2_max_token_length initial_epoch
            initial_step ip_noise_gamma learning_rate_te learning_rate_te1 learning_rate_te2
            learning_rate_te3 logit_mean lr_decay_steps lr_scheduler_min_lr_ratio lr_scheduler_timescale
            max_timestep max_validation_steps min_timestep multires_noise_iterations
            num_last_block_to_freeze pos_emb_random_crop_rate sample_batch_size save_last_n_epochs_state
            save_n_epoch_ratio scale_weight_norms single_blocks_to_swap
            stop_text_encoder_training t5_dropout_rate text_encoder_batch_size token_warmup_step
            v_pred_like_loss validate_every_n_epochs validate_every_n_steps validation_seed
            """
        )
    ),
    "huber_c": 0.1,
    "huber_scale": 1.0,
    "logit_std": 1.0,
    "lr_scheduler_num_cycles": 1,
    "lr_scheduler_power": 1,
    "mode_scale": 1.29,
    "multires_noise_discount": 0.3,
    "prior_loss_weight": 1.0,
    "t5xxl_max_token_length": 512,
    "token_warmup_min": 1,
    "training_shift": 1.0,
    "zero_stage": 2,
}
"""Arguments with sd-scripts' defaults; 0 means unused if there is no default."""
_ZERO_COUNTS = frozenset(
    names(
        """
        initial_epoch initial_step learning_rate_te learning_rate_te1 learning_rate_te2 learning_rate_te3
        lr_scheduler_min_lr_ratio lr_scheduler_timescale max_validation_steps num_last_block_to_freeze
        stop_text_encoder_training validation_seed
        """
    )
)
"""Exceptions: without a rate, a text encoder uses the network's."""
_TEXTS = frozenset(
    names(
        """
        block_lr caption_separator console_log_level dataset_class dynamo_backend face_crop_aug_range
        huber_schedule log_prefix log_tracker_name lr_scheduler_type metadata_author metadata_description
        metadata_is_negative_embedding metadata_license metadata_merged_from metadata_preprocessor
        metadata_tags metadata_title metadata_trigger_phrase metadata_usage_hint offload_optimizer_device
        offload_param_device resize_interpolation sample_sampler secondary_separator system_prompt
        t5xxl_device t5xxl_dtype training_comment wandb_run_name weighting_scheme
        """
    )
)
_LISTS = frozenset({"base_weights_multiplier", "lr_scheduler_args"})
PATHS = frozenset(
    names(
        """
        base_weights console_log_file controlnet_model_name_or_path log_tracker_config metadata_thumbnail
        offload_optimizer_nvme_path offload_param_nvme_path
        """
    )
)
"""Files and folders without a key here: raw arguments may not name paths."""
RAW = _FLAGS | _NUMBERS.keys() | _TEXTS | _LISTS
_WORDS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


class NotRaw(ValueError):
    """A value that cannot be written as a raw argument; the message says why."""


def raw_argument(name: str, value: Any) -> str:
    """The raw argument for `name` and `value`, such as `--huber_c 0.2`; empty if that is sd-scripts' default.

    Raises:
        NotRaw: it takes no such value.
    """
    if name in _FLAGS:
        switch = value if isinstance(value, bool) else _WORDS.get(str(value).lower())
        if switch is None:
            raise NotRaw("takes true or false.")
        return f"--{name}" if switch else ""
    if name in _NUMBERS:
        number = _number(value)
        has_none = _NUMBERS[name] is None and name not in _ZERO_COUNTS
        is_unused = number == _NUMBERS[name] or (number == 0 and has_none)
        return "" if is_unused else f"--{name} {number!r}"
    parts = _parts(value) if name in _LISTS else [str(value)]
    if not all(isinstance(value, str | int | float) for value in (value if name in _LISTS else [value])):
        raise NotRaw("takes text.")
    for part in parts:
        _require_plain(part)
    return " ".join([f"--{name}", *map(shlex.quote, parts)]) if parts else ""


def _parts(value: Any) -> list[str]:
    if isinstance(value, str):
        return value.replace('"', "").split()
    if not is_array(value):
        raise NotRaw("takes a list.")
    return list(map(str, value))


def _require_plain(text: str) -> None:
    if "/" in text or "\\" in text or text.startswith("~"):
        raise NotRaw("looks like a path, and raw arguments may not name paths.")
    if text.startswith("--") or "\n" in text:
        raise NotRaw("cannot be written as a raw argument.")


def _number(value: Any) -> int | float:
    if isinstance(value, bool):
        raise NotRaw("takes a number.")
    for kind in (int, float):
        try:
            number = kind(value) if isinstance(value, str) else value
            if isinstance(number, int | float) and number == number and abs(number) != float("inf"):
                return int(number) if isinstance(number, float) and number.is_integer() else number
        except ValueError:
            continue
    raise NotRaw("takes a number.")
