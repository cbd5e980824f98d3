"""Tagging and captioning of pictures: runs beside training, in the same directory protocol."""
