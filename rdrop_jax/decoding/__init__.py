"""Searches over any model that tells the logits of the next token."""
