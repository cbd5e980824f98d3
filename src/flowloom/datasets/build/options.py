"""Options of a build."""

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
    """Options of a build, with usual defaults."""

    kind: Kind = "auto"
    """Format of the source; auto: detected."""
    root: Path | None = None
    """Folder that file names are relative to, training's `image_folder_path`; None: the source's."""
    url_prefix: str = ""
    """Base URL of the images: names become this prefix and the path below the root."""
    extract_dir: Path | None = None
    """Folder for images from archives and tables; None: a folder beside the output."""
    caption_suffixes: tuple[str, ...] = (".txt", ".caption", ".json")
    """Suffixes of caption files; the first one that exists is used."""
    caption_encoding: str = "utf-8"
    default_caption: str | None = None
    """Caption of images without one; None: they are reported, not written."""
    each_line: bool = False
    """Each line of a text file is a separate caption; they alternate over the epochs."""
    reference_dirs: tuple[Path, ...] = ()
    """Folders with the images that images of the same name were edited from, in order."""
    is_tag_based: bool | None = None
    """None: as recorded, or detected for each caption."""
    loss_weight: float = 1.0
    """Loss weight of images that have none recorded."""
    reg_weight: float = 1.0
    """Loss weight of Kohya's regularisation images."""
    with_repeats: bool = True
    """Write a row for each of Kohya's repeats."""
    filename_column: str = ""
    caption_column: str = ""
    image_column: str = ""
    """Columns of tables; empty: the usual names."""
    with_videos: bool = True
    """Videos become rows of clips; False: only images are read."""
    with_scenes: bool = False
    """Cut videos at scene changes."""
    clip_s: float | None = None
    """Cut videos, or their scenes, every so many seconds; None: not."""
    split: str = ""
    """Split of a Hugging Face dataset; empty: train, or the only one."""
    threads: int | None = None
    """None: 4 for local files, 64 for stores."""
    storage: StorageSection = field(default_factory=StorageSection)
    """Access to stores."""

    @property
    def default_captions(self) -> tuple[str] | None:
        """The default caption as a tuple."""
        return None if self.default_caption is None else (self.default_caption,)

    @property
    def caption_rule(self) -> CaptionRule:
        """The rule for sources that do not define their own."""
        return CaptionRule(self.default_caption, "each" if self.each_line else "joined")
