"""Scorers: how much each token is worth, one file a method."""
