"""Summarization with BART. Importing it needs no jax."""

from rdrop_jax.data import index
from rdrop_jax.tasks.summarization import cnn_dailymail
from rdrop_jax.tasks.summarization.summary_sets import check_data as check_data

FAMILIES = ("bart",)
RECIPES = {"cnn_dailymail": (cnn_dailymail.prepare, index.read_texts)}
