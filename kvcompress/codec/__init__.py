"""Codecs: snapshots to encoded files and back, where codecs are installed, and what they guarantee."""
