"""Beam search and sampling for any model that returns next-token logits."""
