"""Language models over words, characters or subwords. Importing it needs no jax."""

from rdrop_jax.tasks.field_checks import TEXT_VIEWS
from rdrop_jax.tasks.language_modeling.running_text import check_data as check_data

FAMILIES = ()
VIEWS = TEXT_VIEWS
