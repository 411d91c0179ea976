"""Fit a TinyVAE: moments for the closed form, calibration of prediction and scales, the training loss."""
