"""Translation with an encoder-decoder Transformer. Importing it needs no jax."""

from rdrop_jax.data import index
from rdrop_jax.tasks.seq2seq import prepared_text
from rdrop_jax.tasks.translation import corpora
from rdrop_jax.tasks.translation.translation_sets import check_data as check_data

FAMILIES = ("marian",)
RECIPES = dict.fromkeys(prepared_text.NAMES, (corpora.prepare, index.read_texts))
