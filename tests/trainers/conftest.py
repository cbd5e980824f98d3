"""Runs on the tiny family."""

from tests.engine.conftest import make_config, synthetic_data  # noqa: F401 -- fixtures
from tests.fakes.least_sd_scripts import kohya_config, least_checkout  # noqa: F401 -- fixtures
