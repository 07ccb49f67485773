"""Image classification with a Vision Transformer. Importing it needs no jax."""

from rdrop_jax.data import prepared
from rdrop_jax.tasks.image_classification import cifar, imagenet
from rdrop_jax.tasks.image_classification.image_sets import check_data as check_data

# Values of model_type in config.json that the task reads and exports.
FAMILIES = ("vit",)
RECIPES = {
    "cifar100": (cifar.prepare, prepared.read_index),
    "imagenet2012": (imagenet.prepare, prepared.read_index),
}
