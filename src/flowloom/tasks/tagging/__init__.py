"""Tagging and captioning of images, as runs with run directories."""
