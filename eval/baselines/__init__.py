"""What a user could choose instead: every rival a codec in a file of its own, writing real bytes."""
