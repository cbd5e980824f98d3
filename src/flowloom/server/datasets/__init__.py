"""Datasets of the studio: locations, index, uploads, edits and undo."""
