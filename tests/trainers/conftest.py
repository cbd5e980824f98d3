"""Runs on the tiny family."""

from tests.engine.conftest import drawn_data, make_config  # noqa: F401 -- fixtures
