"""Kohya's sd-scripts as a trainer."""
