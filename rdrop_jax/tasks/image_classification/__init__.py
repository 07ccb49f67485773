"""Image classification. Importing it needs no jax."""

from rdrop_jax.data import prepared
from rdrop_jax.tasks.field_checks import IMAGE_VIEWS
from rdrop_jax.tasks.image_classification import imagenet
from rdrop_jax.tasks.image_classification.image_sets import check_data as check_data

# Modules by ``model.name``, which is also the model_type in config.json of weights. A
# module defines
#   make_model(config) -> flax.linen.Module
#   make_family(model, config.data) -> rdrop_jax.pretrained.initialize.Family
MODELS = {
    "vit": "rdrop_jax.tasks.image_classification.vit_model",
    "dinov2": "rdrop_jax.tasks.image_classification.vit_model",
}
FAMILIES = tuple(MODELS)
VIEWS = IMAGE_VIEWS
RECIPES = {"imagenet2012": (imagenet.prepare, prepared.read_index)}
