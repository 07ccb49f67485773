"""Losses whose value and gradient are computed together."""
