"""Training of codecs, installed with the extra `train`: closed form first, then prior and transform with Lightning."""
