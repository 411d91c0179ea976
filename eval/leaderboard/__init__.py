"""Scorers and plans measured: what fits them, and a leaderboard at equal bytes and at equal kept tokens."""
