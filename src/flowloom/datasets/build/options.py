"""What a user may choose about a build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowloom.datasets.build.items import CaptionRule
from flowloom.storage.base import StorageSection

Kind = Literal[
    "auto", "folder", "kohya", "kohya-toml", "table", "parquet", "webdataset", "huggingface", "listing"
]


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Every choice, with what most people want as default."""

    kind: Kind = "auto"
    """Form of the source; auto looks at it."""
    root: Path | None = None
    """Folder that file names are relative to, training's `image_folder_path`; None: the source's."""
    url_prefix: str = ""
    """Where the pictures can be had from: names become this prefix and the path below the root."""
    extract_dir: Path | None = None
    """Where pictures inside archives and tables go; None: a folder beside the output."""
    caption_suffixes: tuple[str, ...] = (".txt", ".caption", ".json")
    """Of files with captions, the first one that is there wins."""
    caption_encoding: str = "utf-8"
    default_caption: str | None = None
    """For pictures without a caption; None: they are reported, not written."""
    each_line: bool = False
    """Every line of a text file is a caption of its own; they take turns over the epochs."""
    is_tag_based: bool | None = None
    """None: as recorded, or else seen from each caption."""
    loss_weight: float = 1.0
    """Where none is recorded."""
    reg_weight: float = 1.0
    """Loss weight of Kohya's regularisation pictures."""
    with_repeats: bool = True
    """Kohya's repeats become that many equal rows."""
    filename_column: str = ""
    caption_column: str = ""
    image_column: str = ""
    """Of tables; empty: the usual names are looked for."""
    split: str = ""
    """Of a Hugging Face data set; empty: train, or the only one."""
    threads: int | None = None
    """None: few for local files, many for stores."""
    storage: StorageSection = field(default_factory=StorageSection)
    """How stores are reached."""

    @property
    def default_captions(self) -> tuple[str] | None:
        """The default caption as the only one."""
        return None if self.default_caption is None else (self.default_caption,)

    @property
    def caption_rule(self) -> CaptionRule:
        """How captions follow from their files where the source has no rule of its own."""
        return CaptionRule(self.default_caption, "each" if self.each_line else "joined")
