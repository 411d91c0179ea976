"""Fit a codec to sessions and verify its quality: closed form, calibration, checkpoints."""
