"""The configuration of a FLOW run: FLOW's unchanged sections, the checkout and the trainer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from flowloom.config.flow_format.keys import FLOW_KEYS
from flowloom.config.flow_format.sections import (
    Count,
    DataloaderSection,
    InferenceSection,
    LoraSection,
    ModelSection,
    TrainingSection,
)
from flowloom.config.flow_format.translate import general_name
from flowloom.config.keys import nearest
from flowloom.errors import Problem
from flowloom.schema import Section

# Keys of FLOW's rarer trainers are not validated; `strange_keys` refuses those that no trainer has.
_OPEN = ConfigDict(extra="allow")


class UpstreamTraining(TrainingSection):
    """FLOW's `training`."""

    model_config = _OPEN
    offload_param_count: Count = 0
    """Frozen parameters moved to the CPU while the optimizer works; older trainers only."""
    save_folder: str = ""
    """Folder of checkpoints. None: the run directory."""
    aim_path: str = ""
    """Aim's folder, which FLOW needs. None: in the run directory."""
    aim_experiment_name: str | None = None
    """Name of the run in Aim."""


class UpstreamInference(InferenceSection):
    """FLOW's `inference`."""

    model_config = _OPEN
    inference_folder: str = ""
    """Folder of previews. Empty: the run directory."""


class UpstreamDataloader(DataloaderSection):
    """FLOW's `dataloader`."""

    model_config = _OPEN


class UpstreamModel(ModelSection):
    """FLOW's `model`."""

    model_config = _OPEN


class UpstreamConfig(Section):
    """A run of FLOW itself."""

    checkout: str = ""
    """Checkout of FLOW, one of those registered on this machine. None: the last registered."""
    trainer: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.\w+)*$")] = "train_mp.py"
    """A script at the top of the checkout, or a trainer's module such as src.trainer.train_chroma."""
    training: UpstreamTraining = UpstreamTraining()
    inference: UpstreamInference = UpstreamInference()
    extra_inference_config: list[UpstreamInference] = []
    """Further previews."""
    dataloader: UpstreamDataloader = UpstreamDataloader()
    model: UpstreamModel = UpstreamModel()
    lora: LoraSection | None = None

    @property
    def sections(self) -> dict[str, BaseModel]:
        """The sections of FLOW in this configuration, by path."""
        extra = {
            f"extra_inference_config.{i}": section for i, section in enumerate(self.extra_inference_config)
        }
        found: dict[str, BaseModel] = {
            "training": self.training,
            "inference": self.inference,
            **extra,
            "dataloader": self.dataloader,
            "model": self.model,
        }
        return {**found, "lora": self.lora} if self.lora else found


def strange_keys(config: UpstreamConfig, taken: Collection[str] = ()) -> Iterator[Problem]:
    """Problems for keys that no FLOW trainer knows, except `taken`, which the chosen trainer accepts."""
    for place, section in config.sections.items():
        for name in section.model_extra or {}:
            path = f"{place}.{name}"
            if general_name(path) not in FLOW_KEYS and path not in taken:
                meant = nearest(path, FLOW_KEYS)
                hint = f"did you mean {meant}?" if meant else "none of FLOW's trainers has it."
                yield Problem(path, f"unknown key; {hint}", "unknown-key")
