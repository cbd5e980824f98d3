"""FLOW's keys that have no field of the same name in our schema, and what happens to them.

Collected from FLOW's README, its example files and its trainers' dataclasses, from April 2025 to its
`experimental` branch. A key of `inference` also stands for that key in `extra_inference_config`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moved:
    """Supported under another name."""

    to: str
    difference: str = ""
    """From FLOW, as a sentence that every file with the key is answered with."""


@dataclass(frozen=True)
class Tracked:
    """Supported as `setting` of a logger of this `kind`."""

    kind: str
    setting: str


@dataclass(frozen=True)
class Secret:
    """Supported through an environment variable; never stored."""

    name: str


@dataclass(frozen=True)
class Replaced:
    """Not supported; `by` says what to use instead."""

    by: str


@dataclass(frozen=True)
class Foreign:
    """Belongs to one of FLOW's trainers that Flowloom does not have: the file is refused."""

    trainer: str


Fate = Moved | Tracked | Secret | Replaced | Foreign

_LUMINA = Foreign("Lumina")
_REFLOW = Foreign("reflow (distillation)")
_Z_IMAGE = Foreign("Z-Image")
_FLUX = Foreign("FLUX")
_KLEIN = Foreign("FLUX.2 Klein")
_RADIANCE = Foreign("pixel-space (DCT, Radiance)")

FLOW_KEYS: dict[str, Fate] = {
    "training.offload_param_count": Moved(
        "memory.offload_param_count",
        "FLOW's Chroma trainers do not read it. Here memory.streamed_blocks auto keeps at most as many "
        "weights in host memory, and none if the device has room; 0 sets no limit.",
    ),
    "training.reset_optim_every": Replaced(
        "an adapter keeps its optimizer for the whole run (no trainer of FLOW read this key); "
        "for layer rotation use method.rotation_states reset."
    ),
    "training.save_folder": Replaced(
        "checkpoints are saved in the run directory: see --runs-dir and --name."
    ),
    "training.gradient_accumulation_steps": Replaced(
        "a step uses dataloader.batch_size samples; training.train_minibatch splits them to fit in memory."
    ),
    "training.max_grad_norm": Moved("optimizer.max_grad_norm"),
    "training.use_aim": Replaced("Aim is used if training.aim_path or a logger of kind aim is set."),
    "training.aim_path": Tracked("aim", "repo"),
    "training.aim_experiment_name": Tracked("aim", "experiment"),
    "training.aim_hash": Tracked("aim", "run_hash"),
    "training.aim_steps": Tracked("aim", "first_step"),
    "training.wandb_key": Secret("WANDB_API_KEY"),
    "training.wandb_project": Tracked("wandb", "project"),
    "training.wandb_run": Tracked("wandb", "run"),
    "training.wandb_entity": Tracked("wandb", "entity"),
    "training.hf_repo_id": Moved("hub.repo_id"),
    "training.hf_token": Secret("HF_TOKEN"),
    "training.trained_blocks": _LUMINA,
    "training.echo_times": _REFLOW,
    "training.teacher_ode_steps": _REFLOW,
    "training.cfg_scale": _REFLOW,
    "training.teacher_uncond_percentage": _REFLOW,
    "training.cfg_max_strength": _FLUX,
    "training.contrastive_strength": Foreign("gradient analysis"),
    "inference.inference_folder": Replaced("previews are saved in samples/ of the run directory."),
    "inference.teacher": _REFLOW,
    "inference.gemma_max_length": _LUMINA,
    "inference.max_sequence_length": _Z_IMAGE,
    "inference.clip_max_length": _FLUX,
    "model.lumina_path": _LUMINA,
    "model.gemma_path": _LUMINA,
    "model.gemma_to_8bit": _LUMINA,
    "model.gemma_max_length": _LUMINA,
    "model.teacher_chroma_path": _REFLOW,
    "model.teacher_steps": _REFLOW,
    "model.distillation_steps": _REFLOW,
    "model.klein_path": _KLEIN,
    "model.model_variant": _KLEIN,
    "model.qwen_max_length": _KLEIN,
    "inference.qwen_max_length": _KLEIN,
    "inference.reference_image_paths": _KLEIN,
    "dataloader.num_reference_images": _KLEIN,
    "dataloader.reference_image_t_scale": _KLEIN,
    "model.z_image_path": _Z_IMAGE,
    "model.qwen_path": _Z_IMAGE,
    "model.qwen_tokenizer_path": _Z_IMAGE,
    "model.max_sequence_length": _Z_IMAGE,
    "model.flux_path": _FLUX,
    "model.clip_max_length": _FLUX,
    "model.use_patch_size_32": _RADIANCE,
}

NEEDED = {"aim": "repo", "wandb": "project"}
"""The setting without which FLOW does not use the tracker."""
