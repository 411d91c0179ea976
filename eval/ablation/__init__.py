"""What each part of the codec is worth: the same codec without it, at equal KL."""
