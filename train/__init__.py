"""Workshop: recipes that train the bundled reference model and record sessions with it. Not installed."""
