"""Runs on the tiny family."""

from tests.engine.conftest import drawn_data, make_config  # noqa: F401 -- fixtures
from tests.stand_ins.least_sd_scripts import kohya_config, least_checkout  # noqa: F401 -- fixtures
