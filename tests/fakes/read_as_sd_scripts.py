"""Reads runs as sd-scripts' own scripts do, and prints the result in JSON.

`PYTHON read_as_sd_scripts.py RUN_DIR=SCRIPT...`, in the checkout, by its own Python: each configuration goes
through the script's argparse, the datasets through its sanitizer, all through its own assertions.
"""

import argparse
import importlib
import json
import re
import sys
import tomllib
from pathlib import Path


def read(run_dir, script):
    """The arguments that `script` reads in `run_dir`; wrong: all that it would accept silently."""
    module = importlib.import_module(Path(script).stem)
    util = importlib.import_module("library.train_util")
    parser = module.setup_parser()
    sys.argv = [script, "--config_file", f"{run_dir}/config.toml"]
    args = util.read_config_from_file(parser.parse_args(), parser)
    util.verify_training_args(args)
    actions = {action.dest: action for action in parser._actions}
    arguments = tomllib.loads(Path(f"{run_dir}/config.toml").read_text())["arguments"]
    wrong = [word for key, value in arguments.items() if (word := wrong_with(actions.get(key), key, value))]
    group = dataset_of(args, Path(script))
    trainers = [value for value in vars(module).values() if hasattr(value, "assert_extra_args")]
    for trainer in trainers:
        if trainer.__module__ == module.__name__:
            trainer().assert_extra_args(args, group, None)
    return {
        "wrong": wrong,
        "arguments": {key: getattr(args, key) for key in arguments},
        "images": group.num_train_images,
        "kinds": [type(dataset).__name__ for dataset in group.datasets],
        "captions": sorted({info.caption for one in group.datasets for info in one.image_data.values()}),
        "prompts": util.load_prompts(args.sample_prompts) if args.sample_prompts else [],
    }


def dataset_of(args, script):
    """The dataset of the script, made with the flags that it gives to the sanitizer."""
    util = importlib.import_module("library.config_util")
    texts = script.read_text(), Path("train_network.py").read_text()
    flags = next(found[1] for text in texts if (found := re.search(r"ConfigSanitizer\(([^()]*)\)", text)))
    sanitizer = util.ConfigSanitizer(*eval(f"({flags})", {"args": args}))
    blueprint = util.BlueprintGenerator(sanitizer).generate(util.load_user_config(args.dataset_config), args)
    group, _ = util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    return group


def wrong_with(action, key, value):
    """Why a value of config.toml is not what the argument of this name would be; argparse does not look."""
    if action is None:
        return f"{key} is no argument"
    if isinstance(action, argparse._StoreTrueAction):
        return "" if isinstance(value, bool) else f"{key} is {value!r}, and a flag"
    values = value if isinstance(value, list) else [value]
    if (action.nargs in ("*", "+")) != isinstance(value, list):
        return f"{key} is {value!r}, and takes {action.nargs or 1}"
    kind = action.type if action.type in (int, float, str) else None
    for one in values:
        if action.choices and one not in action.choices:
            return f"{key} is {one!r}, none of {list(action.choices)}"
        if kind and not isinstance(one, (int, float) if kind is float else kind):
            return f"{key} is {one!r}, no {kind.__name__}"
    return ""


if __name__ == "__main__":
    sys.path[:1] = ["."]
    base, sd = (importlib.import_module(f"library.strategy_{name}") for name in ("base", "sd"))
    base.LatentsCachingStrategy.set_strategy(sd.SdSdxlLatentsCachingStrategy(True, False, 1, False))
    found = {}
    for pair in sys.argv[1:]:
        run_dir, _, script = pair.rpartition("=")
        try:
            found[pair] = read(run_dir, script)
        except BaseException as error:
            found[pair] = {"error": f"{type(error).__name__}: {error}"}
    print("\nREAD " + json.dumps(found, default=str))
