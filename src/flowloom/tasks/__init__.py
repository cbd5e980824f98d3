"""What runs beside training: caching, downloads, tagging ..., each a run in the same queue and directory."""

from typing import Any

from flowloom.tasks.base import Task
from flowloom.tasks.cache import TASK as CACHE
from flowloom.tasks.caption import TASK as CAPTION
from flowloom.tasks.datasets import TASKS as DATASETS
from flowloom.tasks.demo import TASK as DEMO
from flowloom.tasks.download import TASK as DOWNLOAD
from flowloom.tasks.export import EXPORT, MERGE
from flowloom.tasks.hash import TASK as HASH
from flowloom.tasks.restore_captions import TASK as RESTORE_CAPTIONS
from flowloom.tasks.sample import TASK as SAMPLE
from flowloom.tasks.tag import TASK as TAG

_CAPTIONING = (TAG, CAPTION, RESTORE_CAPTIONS)
_MODELS = (DOWNLOAD, HASH, EXPORT, MERGE, SAMPLE)
ALL: dict[str, Task[Any]] = {task.name: task for task in (CACHE, DEMO, *_CAPTIONING, *_MODELS, *DATASETS)}
