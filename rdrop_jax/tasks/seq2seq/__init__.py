"""Shared code of translation and summarization."""
