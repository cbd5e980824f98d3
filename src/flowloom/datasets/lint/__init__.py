"""Finds problems in a dataset before a run does, and fixes those that can be fixed."""
