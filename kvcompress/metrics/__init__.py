"""What is measured between two models' predictions, and how sure it is."""
