"""Rate control: from what the user asks for (a quality, a size, a bound on KL, a link) to a file."""
