"""Sessions coded in segments beside the same sessions coded at once."""
