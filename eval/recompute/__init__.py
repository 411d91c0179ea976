"""The trade-off between coding everything and prefilling again: `python -m eval recompute`."""
