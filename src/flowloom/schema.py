"""How a choice by name becomes one file: tagged unions made from the modules of a package."""

import importlib
import pkgutil
from types import ModuleType
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the run's configuration: frozen, and it refuses keys that it does not know.

    The docstring under a field is its help text: in `--help`, the JSON schema, the form.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def union_of(package: ModuleType, base: type[Section]) -> Any:
    """The union, tagged by `kind`, of every `base` that a module of `package` defines.

    A new part is a new file: importing the modules is what registers it.
    """
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    variants = sorted(base.__subclasses__(), key=lambda part: part.__name__)
    return Annotated[Union[tuple(variants)], Field(discriminator="kind")]
