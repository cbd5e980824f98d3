"""The JSON of kohya_ss' form, as the arguments that kohya_ss makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from flowloom.errors import ConfigError, Problem
from flowloom.json_types import is_array, is_object
from flowloom.text_files import without_mark
from flowloom.trainers.kohya.imports.arguments import Placer
from flowloom.trainers.kohya.imports.datasets import of_folders, of_toml
from flowloom.trainers.kohya.imports.families import family_of, is_on, method_of, require_known
from flowloom.trainers.kohya.imports.networks import KEYS, has_algorithm, network_of
from flowloom.trainers.kohya.imports.result import Files, Given, Imported
from flowloom.trainers.kohya.imports.toml_files import read_dataset
from flowloom.trainers.kohya.imports.values import is_empty, number_of, words_of
from flowloom.trainers.kohya.known_keys import names

_RENAMED = {
    "flux_fused_backward_pass": "fused_backward_pass",
    "lora_network_weights": "network_weights",
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
}
_FORM = frozenset(
    names(
        """
        batch_size headless print_only model_list save_as_bool create_caption create_buckets save_as
        generate_caption_database generate_image_buckets full_path use_latent_files lowvram
        """
    )
)
"""Keys of the form itself, or no longer passed on by it."""
_LAUNCH = {
    "num_processes": "1", "num_machines": "1", "multi_gpu": "False", "gpu_ids": "", "main_process_port": "0",
    "num_cpu_threads_per_process": "2", "dynamo_backend": "no", "dynamo_mode": "default",
    "dynamo_use_fullgraph": "False", "dynamo_use_dynamic": "False", "extra_accelerate_launch_args": "",
}  # fmt: skip
"""Arguments of accelerate's launcher, with the values that change nothing."""
_PREFIXES = {
    "sdxl_": ("sdxl",), "flux1_": ("flux", "chroma"), "sd3_": ("sd3",), "lumina_": ("lumina",),
    "hunyuan_image_": (), "hunyuan_": (), "anima_": (),
}  # fmt: skip
_FAMILIES = ("flux1", "sd3", "sdxl", "lumina", "hunyuan_image", "anima")
_SWITCHES = frozenset({"sdxl", *(f"{name}_checkbox" for name in _FAMILIES)})
_OF_FLUX = frozenset(
    names(
        """
        ae clip_l t5xxl discrete_flow_shift model_prediction_type timestep_sampling split_mode guidance_scale
        t5xxl_max_token_length mem_eff_save apply_t5_attn_mask cpu_offload_checkpointing single_blocks_to_swap
        double_blocks_to_swap fp8_base_unet sigmoid_scale model_type t5xxl_lr
        """
    )
)
_OF_SD3 = frozenset(
    names(
        """
        clip_g clip_g_dropout_rate logit_mean logit_std mode_scale pos_emb_random_crop_rate save_clip
        save_t5xxl t5xxl_device t5xxl_dtype weighting_scheme
        """
    )
)
_ONLY_FOR = {
    **dict.fromkeys(_OF_FLUX, ("flux", "chroma")),
    **dict.fromkeys(_OF_SD3, ("sd3",)),
    "blocks_to_swap": ("flux", "chroma", "sd3", "lumina"),
    "t5xxl_lr": ("flux", "chroma", "sd3"),
    "learning_rate_te": ("sd15",),
    **dict.fromkeys(("learning_rate_te1", "learning_rate_te2"), ("sdxl", "sd3")),
    "learning_rate_te3": ("sd3",),
    "max_token_length": ("sd15", "sdxl", "sd3"),
    "clip_skip": ("sd15", "sdxl", "sd3", "flux", "chroma"),
}
"""Keys that kohya_ss passes on only for these families."""
_NOISE = {
    **dict.fromkeys(("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"), "Original"),
    **dict.fromkeys(("multires_noise_iterations", "multires_noise_discount"), "Multires"),
}
_TOGETHER = frozenset(
    names(
        """
        additional_parameters epoch max_train_epochs max_train_steps lr_warmup lr_warmup_steps unet_lr
        text_encoder_lr t5xxl_lr LoRA_type network_args dataset_config train_dir image_folder
        caption_metadata_filename latent_metadata_filename
        """
    )
)
"""Keys whose meaning depends on each other."""


def from_bmaltais(text: str, files: Files | None = None) -> Imported:
    """The configuration that the JSON of kohya_ss' form describes.

    Raises:
        ConfigError: it is no such object, or describes a training that the studio does not have.
    """
    content = _read(text)
    require_known("json", content)
    found = Imported({"family": family_of(content), "method": method_of(content)})
    form = _Form(content, Placer(found.config["family"], files or Files(), found))
    form.place_all()
    dataset_toml = form.placer.files.dataset_toml
    found.config["datasets"] = (
        of_toml(read_dataset("dataset_toml", dataset_toml), form.placer)
        if dataset_toml
        else of_folders(form.placer)
    )
    form.placer.finish()
    return found


def _read(text: str) -> dict[str, Any]:
    try:
        content = json.loads(without_mark(text))
    except ValueError as error:
        raise ConfigError("json", [Problem("json", f"not JSON: {error}.")]) from None
    if not is_object(content):
        raise ConfigError("json", [Problem("json", "holds no object.")])
    sections = {"dataloader", "training", "inference", "model"} & content.keys()
    if sections and all(is_object(content[name]) for name in sections):
        message = "is a configuration of FLOW, not of kohya_ss: import it on the page of that trainer."
        raise ConfigError("json", [Problem("json", message)])
    return content


class _Form:
    """Values of the form."""

    def __init__(self, content: dict[str, Any], placer: Placer):
        self.content, self.placer, self.found = content, placer, placer.found
        self.is_lora = placer.found.config["method"] == "lora"

    def place_all(self) -> None:
        """Convert every key, or report it."""
        for key, value in self.content.items():
            if is_empty(value) and key not in KEYS:
                self.found.unused[key] = "states nothing"
            elif key not in _TOGETHER and key not in KEYS:
                self._place(key, value)
        self._place_network()
        self._place_length()
        self._place_warmup()
        self._place_rates()
        self._place_text_encoders()
        self._place_files()
        if self._has("additional_parameters"):
            self._place_words(self.content["additional_parameters"])

    def _has(self, key: str) -> bool:
        return key in self.content and not is_empty(self.content[key])

    def _number(self, key: str) -> float:
        """The number of a key; 0 if it is missing or not a number."""
        value = number_of(self.content.get(key))
        return value if isinstance(value, int | float) and not isinstance(value, bool) else 0

    def _place(self, key: str, value: Any) -> None:
        families, name = _families_of(key)
        special = self._special(key)
        if special:
            special(key, value)
        elif families is not None and self.placer.family not in families:
            self.found.unused[key] = "belongs to another model family"
        elif is_object(value):
            self.found.leave(key, value)
        else:
            self.placer.place(Given(key, name, value))

    def _special(self, key: str) -> Callable[[str, Any], None] | None:
        if key in _SWITCHES:
            return self._switch
        if key in _FORM:
            return self._of_the_form
        if key in _LAUNCH:
            return self._launch
        if key == "noise_offset_type" or self._is_other_noise(key):
            return self._noise
        return {
            "stop_text_encoder_training": self._stop,
            "stop_text_encoder_training_pct": self._stop,
            "use_wandb": self._wandb,
            "vae_batch_size": self._vae_batch,
        }.get(key)

    def _of_the_form(self, key: str, value: Any) -> None:  # noqa: ARG002
        self.found.unused[key] = "kohya_ss does not hand it over to sd-scripts"

    def _vae_batch(self, key: str, value: Any) -> None:
        if number_of(value) == 0:
            self.found.translated[key] = "memory.vae_batch_size = 1"
        else:
            self.placer.place(Given(key, key, value))

    def _wandb(self, key: str, value: Any) -> None:
        self.placer.place(Given(key, "log_with", "wandb" if is_on(value) else ""))

    def _switch(self, key: str, value: Any) -> None:
        if is_on(value):
            self.found.translated[key] = f"family = {self.placer.family}"
        else:
            self.found.understood.append(key)

    def _launch(self, key: str, value: Any) -> None:
        if str(value) in (_LAUNCH[key], "0", "False"):
            self.found.unused[key] = "changes nothing"
        else:
            self.found.leave(key, value, "is for accelerate's launcher, which the studio does not use")

    def _is_other_noise(self, key: str) -> bool:
        kind = self.content.get("noise_offset_type")
        return key in _NOISE and not is_empty(kind) and kind != _NOISE[key]

    def _noise(self, key: str, value: Any) -> None:
        if key == "noise_offset_type":
            self.found.translated[key] = f"selects the keys of the noise: {value}"
        else:
            self.found.unused[key] = f"noise_offset_type is {self.content['noise_offset_type']}"

    def _stop(self, key: str, value: Any) -> None:
        if number_of(value) == 0:
            self.found.understood.append(key)
        elif self.is_lora:
            self.found.unused[key] = "kohya_ss does not hand it over for LoRAs"
        else:
            self.found.leave(key, value, "is a percentage here; sd-scripts takes steps")

    def _place_network(self) -> None:
        """The adapter's module and its arguments."""
        network = network_of(self.content, self.placer.family, self.found)
        words = words_of(self.content.get("network_args"))
        if network:
            self.placer.state("network", "network_module", network.module)
        elif has_algorithm(words) and not self._has("LoRA_type") and not self._has("network_module"):
            self.placer.state("network", "network_module", "lycoris.kohya")
        elif self._has("LoRA_type"):
            self.found.leave("LoRA_type", self.content["LoRA_type"], "sd-scripts has no such type here")
        if self._has("network_args"):
            self.placer.place(Given("network_args", "network_args", words))
        if network and network.args:
            args = [*network.args, *(words if is_array(words) else [])]
            self.placer.state("network", "network_args", args)

    def _place_length(self) -> None:
        """Steps, or epochs, from which kohya_ss computes missing steps."""
        steps, epochs = self._number("max_train_steps"), self._number("max_train_epochs")
        for key in ("max_train_steps", "max_train_epochs"):
            if self._has(key) and number_of(self.content[key]) == 0:
                self.found.translated[key] = "not set"
            elif self._has(key):
                self.placer.place(Given(key, key, self.content[key]))
        if not self._has("epoch"):
            return
        if steps or epochs:
            self.found.unused["epoch"] = f"{'max_train_epochs' if epochs else 'max_train_steps'} counts"
        else:
            self.placer.place(Given("epoch", "max_train_epochs", self.content["epoch"], "of epoch"))

    def _place_warmup(self) -> None:
        """Steps, or a percentage of all steps."""
        steps = self._number("lr_warmup_steps")
        if self._has("lr_warmup_steps") and (steps or not self._has("lr_warmup")):
            self.placer.place(Given("lr_warmup_steps", "lr_warmup_steps", self.content["lr_warmup_steps"]))
        elif self._has("lr_warmup_steps"):
            self.found.understood.append("lr_warmup_steps")
        if not self._has("lr_warmup"):
            return
        if steps:
            self.found.unused["lr_warmup"] = "lr_warmup_steps counts"
            return
        value = number_of(self.content["lr_warmup"])
        is_percent = isinstance(value, int | float) and 0 <= value < 100
        share = value / 100 if is_percent else value
        self.placer.place(Given("lr_warmup", "lr_warmup_steps", share, f"{value} % of all steps"))

    def _place_rates(self) -> None:
        """Learning rates of the image network and the text encoders; components with 0 are not trained."""
        both = ("unet_lr", "text_encoder_lr")
        unet, text = map(self._number, both)
        has_unet, has_text = map(self._has, both)
        if has_unet and has_text and not unet and not text and self.is_lora:
            self.found.translated |= dict.fromkeys(both, "not set: learning_rate is the rate of both")
        else:
            if has_unet and not unet and text and self.is_lora:
                self.placer.keep_raw(Given("unet_lr", "network_train_text_encoder_only", True))
            elif has_unet:
                self.placer.place(Given("unet_lr", "unet_lr", self.content["unet_lr"]))
            if has_text:
                self._place_text_rate(text)
        if self._has("t5xxl_lr") and "t5xxl_lr" not in self.found.translated:
            self.found.unused["t5xxl_lr"] = "counts only for T5, and beside text_encoder_lr"

    def _place_text_encoders(self) -> None:
        """Text encoders of a full SDXL fine-tune: kohya_ss trains both if one has a learning rate."""
        keys = ("learning_rate_te1", "learning_rate_te2")
        trained = next((key for key in keys if self._number(key) > 0 and key in self.found.raw), None)
        is_whole = not self.is_lora and self.placer.family == "sdxl"
        if trained and is_whole and not self._has("train_text_encoder"):
            self.placer.add_raw(trained, "--train_text_encoder")

    def _place_text_rate(self, rate: float) -> None:
        of_t5 = self._number("t5xxl_lr")
        is_for_t5 = self.placer.family in _ONLY_FOR["t5xxl_lr"]
        value: Any = self.content["text_encoder_lr"]
        if rate and of_t5 and is_for_t5:
            value = [rate, of_t5]
            self.found.translated["t5xxl_lr"] = "training.text_encoder_lr, its second value"
        is_off = number_of(value) == 0 and self.is_lora
        note = "and network.network_train_unet_only = True" if is_off else ""
        self.placer.place(Given("text_encoder_lr", "text_encoder_lr", value, note))
        if is_off:
            self.placer.state("network", "network_train_unet_only", True)

    def _place_files(self) -> None:
        """Other files and folders that describe the images."""
        if self._has("dataset_config"):
            path = self.content["dataset_config"]
            if self.placer.files.dataset_toml:
                self.found.translated["dataset_config"] = "datasets, from the dataset TOML"
            else:
                why = "import this dataset TOML together with the configuration"
                self.found.leave("dataset_config", path, why)
        if self._has("image_folder"):
            self.placer.place(Given("image_folder", "train_data_dir", self.content["image_folder"]))
        files = [key for key in ("latent_metadata_filename", "caption_metadata_filename") if self._has(key)]
        folder = self.content.get("train_dir")
        for key in files[1:]:
            self.found.unused[key] = f"{files[0]} counts"
        if files:
            path = PurePosixPath(str(folder or ""), str(self.content[files[0]]))
            self.placer.place(Given(files[0], "in_json", str(path)))
        if self._has("train_dir"):
            self.found.translated["train_dir"] = "the folder of the metadata file" if files else "not used"

    def _place_words(self, value: Any) -> None:
        """`additional_parameters`: arguments for the command line, which override all others."""
        name = "additional_parameters"
        self.found.translated[name] = "its arguments, one by one"
        for key, values in _arguments(words_of(value) if isinstance(value, str) else [str(value)]):
            stated: Any = values if len(values) > 1 else values[0] if values else True
            if key:
                self.placer.place(Given(f"{name} --{key}", key, stated))
            else:
                self.found.leave(f"{name} {' '.join(values)}", stated, "belongs to no argument")


_LISTS = frozenset(
    {"", "network_args", "optimizer_args", "lr_scheduler_args", "text_encoder_lr", "base_weights"}
)
"""Arguments that take more than one value; values without an argument are kept under an empty name."""


def _families_of(key: str) -> tuple[tuple[str, ...] | None, str]:
    """The families of a key, None for all; and sd-scripts' name for it."""
    for prefix, families in _PREFIXES.items():
        if key.startswith(prefix) and key not in _SWITCHES:
            return families, key.removeprefix(prefix)
    return _ONLY_FOR.get(key), _RENAMED.get(key, key)


def _arguments(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Arguments with their values; values before the first argument have an empty name."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, mark, value = word[2:].partition("=")
            found[name] = [value] if mark else []
        else:
            is_full = len(found.get(name, ())) == 1 and name not in _LISTS
            found.setdefault("" if is_full else name, []).append(word)
    yield from found.items()
