"""What runs beside training: caching, downloads, tagging ..., each a run in the same queue and directory."""

from typing import Any

from flowloom.chores.base import Chore
from flowloom.chores.cache import CHORE as CACHE
from flowloom.chores.download import CHORE as DOWNLOAD
from flowloom.chores.hash import CHORE as HASH

ALL: dict[str, Chore[Any]] = {chore.name: chore for chore in (CACHE, DOWNLOAD, HASH)}
