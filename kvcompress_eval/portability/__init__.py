"""Decode and resume across devices: encode in one condition, decode in another, for every pair at hand."""
