"""What runs beside training: caching, downloads, tagging ..., each a run in the same queue and directory."""

from typing import Any

from flowloom.chores.base import Chore
from flowloom.chores.cache import CHORE as CACHE
from flowloom.chores.datasets import CHORES as DATASETS

ALL: dict[str, Chore[Any]] = {chore.name: chore for chore in (CACHE, *DATASETS)}
