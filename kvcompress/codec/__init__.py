"""Codecs: snapshots to encoded files and back, where codecs lie, and what they promise."""
