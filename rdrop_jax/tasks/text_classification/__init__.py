"""Classes, sets of labels or numbers for texts. Importing it needs no jax."""

from rdrop_jax.tasks.field_checks import TEXT_VIEWS
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
    "mpnet": "rdrop_jax.tasks.text_classification.bert",
    "deberta-v2": "rdrop_jax.tasks.text_classification.bert",
    "modernbert": "rdrop_jax.tasks.text_classification.bert",
}
FAMILIES = tuple(MODELS)
VIEWS = TEXT_VIEWS
