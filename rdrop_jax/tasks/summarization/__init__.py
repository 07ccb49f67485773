"""Summarization with BART. Importing it needs no jax."""

from rdrop_jax.tasks.summarization.summary_sets import check_data as check_data

FAMILIES = ("bart",)
