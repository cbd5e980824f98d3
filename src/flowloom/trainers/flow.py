import json
import sys
from pathlib import Path

from flowloom.errors import ConfigError
from flowloom.spec.flow_json import load_config
from flowloom.spec.run import RunConfig
from flowloom.spec.rundir import write_json
from flowloom.trainers.base import Command


class Flow:
    name, title, abilities = "flow", "FLOW", frozenset({"stop", "checkpoint", "sample"})

    def schema(self):
        return RunConfig.model_json_schema()

    def defaults(self):
        return RunConfig().model_dump(mode="json")

    def presets(self):
        return []

    def check(self, config):
        try:
            load_config(config, [], Path("config"), with_files=True)
        except ConfigError as error:
            return list(error.problems)
        return []

    def prepare(self, config, run_dir, source):
        loaded = load_config(config, [], Path("config"))
        run_dir.write_run(loaded.config, source, loaded.notes)
        write_json(run_dir.run_json, json.loads(run_dir.run_json.read_text()) | {"trainer": "flow"})

    def command(self, run_dir, resume):
        return Command([sys.executable, "-m", "flowloom.engine", str(run_dir.path)], {}, None)

    def parse(self, line):
        return None

    def models(self, roots):
        return {}


TRAINER = Flow()
