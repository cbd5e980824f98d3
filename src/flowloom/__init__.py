"""Flowloom trains Chroma and other flow-matching image models."""

__version__ = "0.1.0"
