"""Image data sets of any common form to FLOW's JSONL, and back.

`build` reads (readers/, one file a form), `export` writes (writers/, one file a form), `upload` moves a data
set into an object store. Nothing here prints, and nothing imports torch.
"""
