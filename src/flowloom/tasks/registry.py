"""All tasks other than the trainer backends, by name."""

from typing import Any

from flowloom.tasks.base import FormTask
from flowloom.tasks.cache import CACHE
from flowloom.tasks.caption import CAPTION
from flowloom.tasks.dataset_build import BUILD, UPDATE
from flowloom.tasks.dataset_export import EXPORT as DATASET_EXPORT
from flowloom.tasks.dataset_import import IMPORT
from flowloom.tasks.dataset_lint import LINT
from flowloom.tasks.demo import DEMO
from flowloom.tasks.download import DOWNLOAD
from flowloom.tasks.export import EXPORT, MERGE
from flowloom.tasks.hash import HASH
from flowloom.tasks.restore_captions import RESTORE_CAPTIONS
from flowloom.tasks.run_import import RUN_IMPORT
from flowloom.tasks.sample import SAMPLE
from flowloom.tasks.tag import TAG

_CAPTIONS = (TAG, CAPTION, RESTORE_CAPTIONS)
_MODELS = (DOWNLOAD, HASH, EXPORT, MERGE, SAMPLE)
_DATASETS = (BUILD, UPDATE, DATASET_EXPORT, LINT, IMPORT)
ALL: dict[str, FormTask[Any]] = {
    task.name: task for task in (CACHE, DEMO, RUN_IMPORT, *_CAPTIONS, *_MODELS, *_DATASETS)
}
