"""Kinds of records, one file each."""
