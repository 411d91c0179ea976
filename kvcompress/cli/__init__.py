"""Command line: one sub-command per file. Heavy imports stay inside the functions, so `--help` is instant."""
