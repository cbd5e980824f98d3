"""What runs beside training: caching, downloads, tagging ..., each a run in the same queue and directory."""

from typing import Any

from flowloom.chores.base import Chore
from flowloom.chores.cache import CHORE as CACHE
from flowloom.chores.download import CHORE as DOWNLOAD
from flowloom.chores.export import EXPORT, MERGE
from flowloom.chores.hash import CHORE as HASH
from flowloom.chores.sample import CHORE as SAMPLE

_CHORES = (CACHE, DOWNLOAD, HASH, EXPORT, MERGE, SAMPLE)
ALL: dict[str, Chore[Any]] = {chore.name: chore for chore in _CHORES}
