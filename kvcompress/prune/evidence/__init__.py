"""Evidence about the tokens of a session: statistics of its cache, attention and gradients."""
