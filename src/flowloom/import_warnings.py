"""Third parties that talk while they are imported, and what they say is of no use here."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Generator[None]:
    """Hold back warnings below errors from bitsandbytes, torchao and what they import.

    Both report every compiled extension that this machine does not need; a failed import still raises.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
