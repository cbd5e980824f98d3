"""Captions of a dataset: one store for reading and writing them, one journal, one undo."""
