"""Measures of two models' predictions, with confidence."""
