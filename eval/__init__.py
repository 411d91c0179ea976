"""Workshop: the demonstration and the benchmark of the whole path. Not installed."""
