"""Convert image datasets of common formats to FLOW's JSONL, and back.

`build` reads (readers/, one file per format), `export` writes (writers/, one file per format), `upload`
copies a dataset to an object store. Nothing here prints or imports torch.
"""
