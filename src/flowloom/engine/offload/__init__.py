"""Weights in host memory while they are not computed with."""
