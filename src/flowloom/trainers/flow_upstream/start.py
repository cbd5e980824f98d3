"""Start a FLOW trainer in FLOW's Python: `PYTHON start.py CHECKOUT MODULE CONFIG`.

FLOW's newer trainers have a `main(config)` that nothing calls, its older ones a function for each rank that
torch's `spawn` calls. Nothing of Flowloom is imported here.
"""

from __future__ import annotations

import importlib
import inspect
import sys


def start(checkout: str, name: str, config: str) -> None:
    """Train with the module `name` of `checkout` and the configuration file `config`."""
    sys.path[:1] = [checkout]
    module = importlib.import_module(name)
    if hasattr(module, "main"):
        module.main(config)
        return
    import torch

    ranks = torch.cuda.device_count()
    train = next(function for found, function in vars(module).items() if found.startswith("train_"))
    takes_config = "json_config" in inspect.signature(train).parameters
    rest = (False, config) if takes_config else ()
    torch.multiprocessing.spawn(  # pyright: ignore[reportPrivateImportUsage] -- it is public
        train, args=(ranks, *rest), nprocs=ranks, join=True
    )


if __name__ == "__main__":
    start(*sys.argv[1:])
