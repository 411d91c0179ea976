"""What a user could choose instead: every baseline a codec in a file of its own, writing real bytes."""
