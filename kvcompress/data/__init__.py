"""Recorded sessions, and their caches harvested as shards."""
