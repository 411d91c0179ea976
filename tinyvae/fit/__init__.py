"""What fits a TinyVAE: moments of the closed form, calibration of prediction and scales, the loss of training."""
