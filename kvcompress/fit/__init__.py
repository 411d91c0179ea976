"""How a codec is made from sessions and what it can promise: closed form, calibration, checkpoints."""
