"""Rate control: encode for a quality, a size, a bound on KL, or a link speed."""
