"""Base class of configurations, metadata of their fields for forms, and unions by `kind`."""

import importlib
import pkgutil
import re
from types import ModuleType
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

_SPELLINGS = {
    "ae": "AE",
    "cfg": "CFG",
    "clip": "CLIP",
    "dataloader": "data loader",
    "ema": "EMA",
    "fp8": "FP8",
    "id": "ID",
    "jsonl": "JSONL",
    "lora": "LoRA",
    "loras": "LoRAs",
    "lr": "learning rate",
    "t5": "T5",
    "t5xxl": "T5 XXL",
    "uncond": "unconditional",
    "url": "URL",
    "urls": "URLs",
    "vae": "VAE",
    "wo": "without",
}
_UNITS = ("gib", "mib", "s")
"""Last words of names that the form shows as the field's unit instead."""


def title_of(name: str, _: object = None) -> str:
    """The label of the field `name`: `Learning rate`."""
    words = name.split("_")
    title = " ".join(_SPELLINGS.get(word, word) for word in words[: -1 if words[-1] in _UNITS else None])
    return title[:1].upper() + title[1:]


def _title_of_section(section: type) -> str:
    name = re.sub(r"(Section|Config)$", "", section.__name__)
    return title_of(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) if name else section.__name__


def ui(
    *, simple: bool = False, unit: str | None = None, group: str | None = None, title: str | None = None
) -> Any:
    """Metadata of a field for forms and documents, in `Annotated`.

    Args:
        simple: shown without "Advanced".
        unit: of a number: steps, pixels, GiB. Of a type, it holds for all fields of this type.
        group: heading above the field, if not the title of its section.
        title: label, if not the one of `title_of`.
    """
    given = {"simple": simple or None, "unit": unit, "group": group}
    return Field(title=title, json_schema_extra={key: value for key, value in given.items() if value})


SIMPLE = ui(simple=True)
"""A field that the form shows without "Advanced"."""


class Section(BaseModel):
    """A part of the run's configuration: frozen, without unknown keys.

    The docstring under a field is its help text: in `--help`, the JSON schema, the form. `title` of a class
    (`class TagConfig(Section, title="Tags")`) is the group of its fields.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        field_title_generator=title_of,
        model_title_generator=_title_of_section,
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        for name, field in own.get("properties", {}).items():
            field.setdefault("title", title_of(name))
            field.setdefault("group", own["title"])
        return schema


def union_of(package: ModuleType, base: type[Section]) -> Any:
    """The union, tagged by `kind`, of every `base` that a module of `package` defines.

    A new kind is a new file: importing the modules registers it.
    """
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    variants = sorted(base.__subclasses__(), key=lambda part: part.__name__)
    return Annotated[Union[tuple(variants)], Field(discriminator="kind")]
