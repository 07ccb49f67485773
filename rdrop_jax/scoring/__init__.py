"""Scores of predictions, exact over a whole split."""
