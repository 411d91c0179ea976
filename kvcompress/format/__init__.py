"""What bytes mean: the container, its sections, entropy coding and files on disk. Knows no codec and no model."""
