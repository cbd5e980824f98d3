"""Imports of other programs' configurations: sd-scripts' TOML, and the JSON of bmaltais' kohya_ss."""

from flowloom.trainers.kohya.imports.kohya_ss import from_bmaltais
from flowloom.trainers.kohya.imports.result import Files, Imported
from flowloom.trainers.kohya.imports.toml_files import from_toml

__all__ = ["Files", "Imported", "from_bmaltais", "from_toml"]
