"""Scores of predictions against what is right."""
