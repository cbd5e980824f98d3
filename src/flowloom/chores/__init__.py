"""What runs beside training: caching, downloads, tagging ..., each a run in the same queue and directory."""

from typing import Any

from flowloom.chores.base import Chore
from flowloom.chores.cache import CHORE as CACHE
from flowloom.chores.caption import CHORE as CAPTION
from flowloom.chores.datasets import CHORES as DATASETS
from flowloom.chores.restore_captions import CHORE as RESTORE_CAPTIONS
from flowloom.chores.tag import CHORE as TAG

ALL: dict[str, Chore[Any]] = {
    chore.name: chore for chore in (CACHE, TAG, CAPTION, RESTORE_CAPTIONS, *DATASETS)
}
