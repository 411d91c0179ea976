"""The fidelity suite: measures after a true decode and resume, their aggregation, and the report."""
