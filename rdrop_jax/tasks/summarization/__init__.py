"""Summarization with BART."""
