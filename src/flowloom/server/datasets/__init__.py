"""Datasets of the studio: where they lie, what is in them, how they are filled, edited and undone."""
