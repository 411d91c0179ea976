"""Scorers: methods that rank tokens by importance, one file each."""
