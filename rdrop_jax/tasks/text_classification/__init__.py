"""Classes, sets of labels or numbers for texts. Importing it needs no jax."""

from rdrop_jax.data import index
from rdrop_jax.tasks.text_classification import glue
from rdrop_jax.tasks.text_classification.text_sets import check_data as check_data

# Modules by ``model.name``, which is also the model_type in config.json of weights. A
# module defines
#   make_model(config) -> flax.linen.Module
#   make_family(model, config.data, tokenizer)
#     -> rdrop_jax.pretrained.initialize.Family
MODELS = {
    "bert": "rdrop_jax.tasks.text_classification.bert",
    "roberta": "rdrop_jax.tasks.text_classification.bert",
    "xlm-roberta": "rdrop_jax.tasks.text_classification.bert",
}
FAMILIES = tuple(MODELS)
RECIPES = {
    glue.PREFIX + name: (glue.preparer(name), index.read_texts) for name in glue.TASKS
}
