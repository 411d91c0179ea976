"""The dial between coding everything and prefilling again: `python -m eval recompute`."""
