"""The session store: sessions as logs of immutable segments, each turn appended, nothing written twice or lost."""
