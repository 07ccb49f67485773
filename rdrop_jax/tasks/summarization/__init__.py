"""Summarization with BART. Importing it needs no jax."""

from rdrop_jax.tasks.seq2seq import prepared_text
from rdrop_jax.tasks.summarization import cnn_dailymail
from rdrop_jax.tasks.summarization.summary_sets import check as check

FAMILIES = ("bart",)
RECIPES = {"cnn_dailymail": (cnn_dailymail.prepare, prepared_text.read_index)}
