"""What runs beside training: caching, downloads, tagging ..., each a run in the same queue and directory."""

from typing import Any

from flowloom.chores.base import Chore
from flowloom.chores.cache import CHORE as CACHE
from flowloom.chores.caption import CHORE as CAPTION
from flowloom.chores.datasets import CHORES as DATASETS
from flowloom.chores.demo import CHORE as DEMO
from flowloom.chores.download import CHORE as DOWNLOAD
from flowloom.chores.export import EXPORT, MERGE
from flowloom.chores.hash import CHORE as HASH
from flowloom.chores.restore_captions import CHORE as RESTORE_CAPTIONS
from flowloom.chores.sample import CHORE as SAMPLE
from flowloom.chores.tag import CHORE as TAG

_CAPTIONING = (TAG, CAPTION, RESTORE_CAPTIONS)
_MODELS = (DOWNLOAD, HASH, EXPORT, MERGE, SAMPLE)
ALL: dict[str, Chore[Any]] = {chore.name: chore for chore in (CACHE, DEMO, *_CAPTIONING, *_MODELS, *DATASETS)}
