"""Summarization with BART. Importing it needs no jax."""

from rdrop_jax.tasks.field_checks import SEQ2SEQ_VIEWS
from rdrop_jax.tasks.summarization.summary_sets import check_data as check_data

FAMILIES = ("bart",)
VIEWS = SEQ2SEQ_VIEWS
