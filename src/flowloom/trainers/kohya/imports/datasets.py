"""Datasets of an imported file: from a dataset TOML, or from folders in the arguments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from flowloom.json_types import is_array, is_object
from flowloom.trainers.kohya.config import Dataset, ImageFolder, as_resolution
from flowloom.trainers.kohya.defaults import DATASET, SUBSET
from flowloom.trainers.kohya.imports.arguments import OF_DATASET, OF_SUBSET, Placer, with_dot
from flowloom.trainers.kohya.imports.folders import subsets_of
from flowloom.trainers.kohya.imports.result import Given
from flowloom.trainers.kohya.imports.values import fitted, is_same
from flowloom.trainers.kohya.known_keys import PATHS, RAW

Table = dict[str, Any]


def of_folders(placer: Placer) -> list[Table]:
    """A dataset of the folders in train_data_dir and reg_data_dir, or of the images in in_json."""
    places, found = placer.places, placer.found
    shared = {**SUBSET, **placer.subset}
    if "in_json" in places:
        subsets = [_of_metadata(placer)]
    else:
        subsets = [
            folder
            for key in ("train_data_dir", "reg_data_dir")
            if key in places
            for folder in subsets_of(places[key], placer.files.look, found)
        ]
    if not subsets and not placer.dataset and not placer.subset:
        return []
    if not subsets:
        # Values of a subset need one, even if it has no folder yet.
        subsets = [{"image_dir": ""}]
    return [_dataset({**placer.dataset}, [_subset({**shared, **one}) for one in subsets], placer, 0)]


def _of_metadata(placer: Placer) -> Table:
    """The images of a full fine-tune, with captions in one file."""
    given, images = placer.places["in_json"], placer.places.get("train_data_dir")
    placer.found.translated[given.name] = "metadata_file of the subset"
    if images:
        placer.found.translated[images.name] = "image_dir of the subset"
    if regular := placer.places.get("reg_data_dir"):
        placer.found.unused[regular.name] = "sd-scripts uses no regularization images beside in_json"
    return {"image_dir": str(images.value) if images else "", "metadata_file": str(given.value)}


def of_toml(content: Mapping[str, Any], placer: Placer) -> list[Table]:
    """The datasets of a dataset TOML; values are inherited from the levels above, and from the arguments."""
    for given in placer.places.values():
        placer.found.unused[given.name] = "sd-scripts reads the dataset TOML instead"
    reader = _Reader(placer, content)
    return list(reader.datasets())


class _Reader:
    """Reads the tables and reports each key once."""

    def __init__(self, placer: Placer, content: Mapping[str, Any]):
        self._placer, self._content = placer, content
        self._others: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        """Keys without a field: their places and values."""

    def datasets(self) -> Iterator[Table]:
        general = self._table("general", self._content.get("general", {}))
        self._note("general", general)
        tables = list(self._tables("datasets", self._content.get("datasets", [])))
        found: list[tuple[int, Table, list[Table]]] = []
        for number, (place, dataset) in enumerate(tables):
            own = {key: value for key, value in dataset.items() if key != "subsets"}
            self._note(place, own)
            handed = {**general, **own}
            subsets: list[Table] = []
            for name, subset in self._tables(f"{place}.subsets", dataset.get("subsets", [])):
                self._note(name, subset, is_subset=True)
                subsets.append({**handed, **subset})
            found.append((number, handed, subsets))
        self._place_others([whole for _, _, subsets in found for whole in subsets])
        for number, handed, subsets in found:
            shared = {**SUBSET, **self._placer.subset}
            own = {**self._placer.dataset, **_of(OF_DATASET, handed)}
            yield _dataset(
                own, [_subset({**shared, **_of(OF_SUBSET, one)}) for one in subsets], self._placer, number
            )
        for key in self._content.keys() - {"general", "datasets"}:
            self._placer.found.leave(key, self._content[key], "has no place in a dataset TOML")

    def _note(self, place: str, table: Table, *, is_subset: bool = False) -> None:
        """Report the keys of one table."""
        for key, value in table.items():
            name = f"{place}.{key}"
            if key in OF_DATASET and is_subset:
                self._placer.found.leave(name, value, "belongs to the dataset, not to a subset")
            elif key in OF_DATASET or key in OF_SUBSET:
                self._note_field(name, key, value)
            else:
                self._others[key].append((name, value))

    def _note_field(self, name: str, key: str, value: Any) -> None:
        taken = _as_field(Dataset if key in OF_DATASET else ImageFolder, key, value)
        if is_same(value, taken) or (key == "resolution" and as_resolution(value) == taken):
            self._placer.found.understood.append(name)
        else:
            self._placer.found.translated[name] = f"{key} = {taken}"

    def _place_others(self, subsets: list[Table]) -> None:
        """Keys without a field become raw arguments, which all subsets inherit, if all subsets agree."""
        for key, stated in self._others.items():
            values = [subset.get(key) for subset in subsets]
            is_shared = bool(values) and key in RAW | PATHS and all(value == values[0] for value in values)
            for number, (name, value) in enumerate(stated):
                if not is_shared:
                    why = "subsets differ in it" if key in RAW else ""
                    self._placer.found.leave(name, value, why)
                elif value != values[0]:
                    self._placer.found.unused[name] = "every subset states another value"
                elif number:
                    self._placer.found.translated[name] = f"the raw argument --{key}"
                else:
                    self._placer.keep_raw(Given(name, key, value))

    def _table(self, place: str, value: Any) -> Table:
        if is_object(value):
            return value
        self._placer.found.leave(place, value, "is no table")
        return {}

    def _tables(self, place: str, value: Any) -> Iterator[tuple[str, Table]]:
        if not is_array(value):
            self._placer.found.leave(place, value, "is no list of tables")
            return
        for number, one in enumerate(value):
            yield f"{place}.{number}", self._table(f"{place}.{number}", one)


def _of(keys: frozenset[str], table: Table) -> Table:
    return {key: value for key, value in table.items() if key in keys}


def _as_field(kind: type[Dataset] | type[ImageFolder], key: str, value: Any) -> Any:
    value = fitted(kind, key, value)
    if key == "resolution":
        return as_resolution(value)
    return with_dot(value) if key == "caption_extension" else value


def _subset(values: Table) -> Table:
    found = {key: _as_field(ImageFolder, key, value) for key, value in values.items()}
    if found.get("metadata_file"):
        # Captions come from that file, with which sd-scripts refuses these keys.
        for key in ("caption_extension", "class_tokens", "is_reg"):
            if found.get(key) == SUBSET[key]:
                del found[key]
    return found


def _dataset(stated: Table, subsets: list[Table], placer: Placer, number: int) -> Table:
    own = {key: _as_field(Dataset, key, value) for key, value in {**DATASET, **stated}.items()}
    for key in DATASET:
        if key not in stated and DATASET[key] != Dataset.model_fields[key].default:
            placer.found.defaults[f"datasets.{number}.{key}"] = DATASET[key]
    if "resolution" not in stated:
        # sd-scripts has no default for it.
        placer.found.defaults[f"datasets.{number}.resolution"] = Dataset.model_fields["resolution"].default
    return {**own, "subsets": subsets}
