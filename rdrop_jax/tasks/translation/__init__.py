"""Translation with an encoder-decoder Transformer. Importing it needs no jax."""

from rdrop_jax.data import index
from rdrop_jax.tasks.field_checks import SEQ2SEQ_VIEWS
from rdrop_jax.tasks.translation import corpora
from rdrop_jax.tasks.translation.translation_sets import check_data as check_data

FAMILIES = ("marian",)
VIEWS = SEQ2SEQ_VIEWS
RECIPES = dict.fromkeys(corpora.RECIPES, (corpora.prepare, index.read_texts))
