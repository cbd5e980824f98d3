"""Convert sd-scripts' arguments to the studio's configuration, and report each of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from flowloom.trainers.kohya.config import Dataset, ImageFolder, KohyaConfig, Sampling, as_resolution
from flowloom.trainers.kohya.defaults import HUB, defaults_of
from flowloom.trainers.kohya.families import FACTS
from flowloom.trainers.kohya.imports.prompts import read_prompts
from flowloom.trainers.kohya.imports.result import Files, Given, Imported
from flowloom.trainers.kohya.imports.values import fitted, is_empty, is_same, number_of
from flowloom.trainers.kohya.known_keys import PATHS, RAW, NotRaw, raw_argument

_SECTIONS: dict[str, type[BaseModel]] = {
    name: type(getattr(KohyaConfig(), name))
    for name in ("model", "network", "training", "flow", "memory", "saving", "hub")
}
_HOMES = {
    **{key: name for name, section in _SECTIONS.items() for key in section.model_fields},
    **dict.fromkeys(("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first"), "sampling"),
}
OF_DATASET = frozenset(Dataset.model_fields) - {"subsets"}
OF_SUBSET = frozenset(ImageFolder.model_fields)
_SECRETS = {"huggingface_token": "HF_TOKEN", "wandb_api_key": "WANDB_API_KEY"}
"""Keys that hold a secret, with its name in the studio."""
_OWN_FOLDER = "the studio writes into the run's own directory"
_SET_HERE = {
    "config_file": "the studio writes this file itself",
    "console_log_file": "the studio keeps the log of each run",
    "image_dir": "it needs a subset of a dataset",
    "is_reg": "it needs a subset of a dataset",
    "logging_dir": _OWN_FOLDER,
    "metadata_file": "it needs a subset of a dataset",
    "output_config": "the studio writes the configuration itself",
    "output_dir": _OWN_FOLDER,
    "resume": "resume the run in the studio, or choose the weights under network.network_weights",
    "resume_from_huggingface": "resume the run in the studio",
    "conditioning_data_dir": "masks belong to a subset: set them there",
    "class_tokens": "it needs a subset of a dataset",
}
_ALREADY = {"log_with": "tensorboard", "save_model_as": "safetensors", "console_log_simple": True}
"""Arguments that the studio sets, with their values."""
_ALIASES = {
    "train_batch_size": "batch_size",
    "dataset_repeats": "num_repeats",
    "caption_extention": "caption_extension",
}
_OPTIMIZERS = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
PLACES = frozenset({"train_data_dir", "reg_data_dir", "in_json"})
"""Keys for image folders, used without a dataset TOML."""
_NAME = re.compile(r"[^A-Za-z0-9._-]+")


def with_dot(ending: Any) -> Any:
    """The suffix of caption files with its dot, which sd-scripts adds."""
    is_bare = isinstance(ending, str) and ending and not ending.startswith(".")
    return f".{ending}" if is_bare else ending


class Placer:
    """Assigns arguments to keys; `finish` makes the configuration."""

    def __init__(self, family: str, files: Files, found: Imported):
        self.family, self.files, self.found = family, files, found
        self.dataset: dict[str, Any] = {}
        """Values for all datasets that have none."""
        self.subset: dict[str, Any] = {}
        self.places: dict[str, Given] = {}
        """Arguments in PLACES."""
        self._stated: dict[str, dict[str, Any]] = {}
        self._raw: list[str] = []
        self._prompts: list[str] = []

    def place(self, given: Given) -> None:
        """Convert one argument, or report it."""
        key = _ALIASES.get(given.key, given.key)
        special = self._special(key)
        if key != given.key and key in self.dataset | self.subset:
            self.found.leave(given.name, given.value, f"{key} counts, which means the same")
        elif special:
            special(given)
        elif key in _HOMES:
            self._field(given, _HOMES[key], key)
        elif key in OF_DATASET:
            self.dataset[key] = self._noted(given, Dataset, key)
        elif key in OF_SUBSET:
            self.subset[key] = self._noted(given, ImageFolder, key)
        else:
            self.keep_raw(given)

    def _special(self, key: str) -> Callable[[Given], None] | None:
        if key in _SECRETS:
            return self._secret
        if key in PLACES:
            return self._place_of_images
        if key in _ALREADY or key in _SET_HERE:
            return self._of_the_studio
        if key in _OPTIMIZERS:
            return self._optimizer
        return {
            "sdpa": self._attention,
            "xformers": self._attention,
            "model_type": self._model_type,
            "network_alpha": self._alpha,
            "output_name": self._output_name,
            "optimizer_type": self._optimizer_type,
            "sample_prompts": self._sample_prompts,
        }.get(key)

    def state(self, section: str, key: str, value: Any) -> None:
        """Set a value of the configuration."""
        self._stated.setdefault(section, {})[key] = value

    def keep_raw(self, given: Given) -> None:
        """Keep an argument without a key here as a raw argument, or report it."""
        name, key = given.name, given.key
        if key not in RAW:
            reason = "names a file: raw arguments take no paths" if key in PATHS else ""
            return self.found.leave(name, given.value, reason)
        try:
            text = raw_argument(key, given.value)
        except NotRaw as error:
            return self.found.leave(name, given.value, f"--{key} {error}")
        if not text:
            self.found.understood.append(name)
            return None
        self.found.raw[name] = text
        self._raw.append(text)
        return None

    def add_raw(self, name: str, arguments: str) -> None:
        """Append raw arguments that follow from the key `name`."""
        self.found.raw[name] = f"{self.found.raw[name]} {arguments}"
        self._raw.append(arguments)

    def _field(self, given: Given, section: str, key: str) -> None:
        kind = _SECTIONS.get(section, Sampling)
        self.state(section, key, self._noted(given, kind, key))

    def _noted(self, given: Given, section: type[BaseModel], key: str) -> Any:
        """The value for the field; reports whether it is the same as in the file."""
        value = fitted(section, key, given.value)
        if key == "resolution":
            value = as_resolution(value)
            given = replace(given, value=value)
        if key == "caption_extension":
            value = with_dot(value)
        self._took(given, key, value)
        return value

    def _took(self, given: Given, key: str, value: Any) -> None:
        if given.note or not is_same(given.value, value):
            self.found.translated[given.name] = f"{key} = {value}{given.note and f' ({given.note})'}"
        else:
            self.found.understood.append(given.name)

    def _secret(self, given: Given) -> None:
        name = _SECRETS[given.key]
        self.found.dropped[given.name] = f"a secret is no part of a configuration: set {name} in settings."

    def _place_of_images(self, given: Given) -> None:
        known = self.places.setdefault(given.key, given)
        if known is not given:
            self.found.leave(given.name, given.value, f"{known.name} counts, which means the same")

    def _of_the_studio(self, given: Given) -> None:
        if given.key in _ALREADY and is_same(given.value, _ALREADY[given.key]):
            self.found.understood.append(given.name)
        elif is_empty(given.value) or given.value is False:
            self.found.unused[given.name] = "states nothing"
        elif given.key in _ALREADY:
            self.found.leave(given.name, given.value, f"the studio uses {_ALREADY[given.key]}")
        else:
            self.found.leave(given.name, given.value, _SET_HERE[given.key])

    def _attention(self, given: Given) -> None:
        """The kernel: kohya_ss' `xformers` is one of three names, sd-scripts' arguments are switches."""
        value = str(given.value).lower()
        if value in ("sdpa", "xformers", "none"):
            kernel = value
        elif value in ("true", "1"):
            kernel = given.key
        elif value in ("false", "0"):
            self.found.understood.append(given.name)
            return
        else:
            self.found.leave(given.name, given.value, "is none of sdpa, xformers and none")
            return
        if kernel != "none" and self._stated.get("training", {}).get("attention") != "xformers":
            # If both are set, sd-scripts uses xformers.
            self.state("training", "attention", kernel)
        self.found.translated[given.name] = f"training.attention = {kernel}"

    def _model_type(self, given: Given) -> None:
        if given.value == self.family or (given.value == "flux" and self.family != "chroma"):
            self.found.translated[given.name] = f"family = {self.family}"
        else:
            self.found.leave(given.name, given.value)

    def _alpha(self, given: Given) -> None:
        self._field(
            replace(given, note=given.note or self._note_on_alpha(given.value)), "network", "network_alpha"
        )

    def _note_on_alpha(self, value: Any) -> str:
        is_zero = number_of(value) == 0 and not isinstance(value, bool)
        return "to sd-scripts this is the rank" if is_zero else ""

    def _output_name(self, given: Given) -> None:
        name = _NAME.sub("-", str(given.value)).strip("-._")[:100]
        if not name:
            self.found.leave(given.name, given.value, "holds no letter or digit that a file name may have")
            return
        self.state("saving", "output_name", name)
        self._took(given, "saving.output_name", name)

    def _optimizer(self, given: Given) -> None:
        if str(given.value).lower() not in ("true", "1"):
            self.found.understood.append(given.name)
            return
        self.state("training", "optimizer_type", _OPTIMIZERS[given.key])
        self.found.translated[given.name] = f"training.optimizer_type = {_OPTIMIZERS[given.key]}"

    def _optimizer_type(self, given: Given) -> None:
        if is_empty(given.value):
            self.found.translated[given.name] = "training.optimizer_type = AdamW"
        else:
            self._field(given, "training", "optimizer_type")

    def _sample_prompts(self, given: Given) -> None:
        """The prompts, or the name of their file, which must be imported too."""
        text = str(given.value)
        is_file = "\n" not in text and text.strip().lower().endswith((".txt", ".toml", ".json"))
        if is_file and not self.files.prompts:
            self.found.leave(
                given.name, given.value, "import this prompt file together with the configuration"
            )
            return
        self._prompts += read_prompts(self.files.prompts if is_file else text, self.found, given.name)
        self.found.translated[given.name] = f"sampling.prompts, {len(self._prompts)} in all"

    def finish(self) -> None:
        """Write the configuration, with sd-scripts' defaults for missing values."""
        config, stated = self.found.config, self._stated
        if self.files.prompts and not self._prompts:
            self._prompts += read_prompts(self.files.prompts, self.found, "prompts")
        if self._prompts:
            self.state("sampling", "prompts", self._prompts)
        network = stated.get("network", {})
        if network.get("network_alpha") == 0 and network["network_alpha"] is not False:
            network["network_alpha"] = network.get("network_dim", 4)
        training = stated.get("training", {})
        if training.get("max_train_epochs"):
            training.setdefault("max_train_steps", None)
        for section, values in defaults_of(self.family).items():
            config[section] = {**values, **stated.get(section, {})}
        for section in stated.keys() - config.keys():
            config[section] = {**(HUB if section == "hub" else {}), **stated[section]}
        if self._raw:
            config["raw_arguments"] = " ".join(self._raw)
        self._note_defaults()

    def _note_defaults(self) -> None:
        """Report sd-scripts' defaults that differ from the studio's."""
        ours = KohyaConfig().model_dump(mode="json")
        for section, values in defaults_of(self.family).items():
            stated = self._stated.get(section, {})
            is_used = section != "sampling" or self._prompts
            for key, value in values.items() if is_used else ():
                own = ours[section][key]
                own = FACTS[self.family].values.get(key) if own is None else own
                if key not in stated and own != value and (own or value):
                    self.found.defaults[f"{section}.{key}"] = value
