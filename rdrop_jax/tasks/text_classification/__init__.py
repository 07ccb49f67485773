"""Classes, sets of labels or numbers for texts. Importing it needs no jax."""

from rdrop_jax.data import index
from rdrop_jax.tasks.text_classification import glue
from rdrop_jax.tasks.text_classification.text_sets import check_data as check_data

FAMILIES = ("bert", "roberta")
RECIPES = {
    glue.PREFIX + name: (glue.preparer(name), index.read_texts) for name in glue.TASKS
}
