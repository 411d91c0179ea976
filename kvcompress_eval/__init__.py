"""Measuring of codecs, installed with the extra `eval`: the fidelity suite, its baselines, tasks, portability."""
