"""What is wrong with a data set, found before a run finds it; and what of it can be mended."""
