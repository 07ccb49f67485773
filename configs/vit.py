"""Image classification with a Vision Transformer.

Presets:
  demo: 8x8 handwritten digits that come with scikit-learn; nothing to download.
        python -m rdrop_jax.train --config configs/vit.py
        2 CPU cores: see docs/results.md for time and accuracy.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rdrop_jax.config import base_config, pick


def vit() -> ConfigDict:
    """What all presets share: the paper's ViT (dropout sites, clipping, selection)."""
    c = base_config()
    c.task = "image_classification"
    c.model.name = "vit"
    c.model.variant = "B"  # mini, Ti, S, B, L: layers, width, heads, mlp width
    c.model.layers = placeholder(int)  # each of these four overrides the variant
    c.model.width = placeholder(int)
    c.model.heads = placeholder(int)
    c.model.mlp_width = placeholder(int)
    c.model.patch_size = 16
    c.model.norm_eps = 1e-6  # of layer norms; Hugging Face's config.json says 1e-12
    c.model.dropout = 0.1  # after the embedding and twice in each MLP
    c.model.attention_dropout = 0.0  # attention weights and attention output

    c.data.image_size = 224
    c.data.channels = 3
    c.data.num_classes = 1000
    c.data.mean = 0.5  # of pixels scaled to [0, 1]
    c.data.std = 0.5
    c.data.shift = 0.0  # training images move by up to so many pixels
    c.data.labelled = 0  # train on so many images, drawn by seed; 0 takes all

    c.optimizer.clip = 1.0
    c.eval.metric = "accuracy"
    return c


def demo() -> ConfigDict:
    """Digits from scratch in under two minutes on two cores."""
    c = vit()
    c.total_steps = "60 epochs"
    c.batch_size = 32
    c.rdrop.alpha = 1.0

    c.data.name = "digits"
    c.data.image_size = 8
    c.data.channels = 1
    c.data.num_classes = 10
    c.data.shift = 0.5

    c.model.variant = "mini"
    c.model.patch_size = 2

    c.optimizer.name = "adam"
    c.optimizer.lr = 3e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "5%"
    c.optimizer.weight_decay = 1e-2
    c.optimizer.decay = "matrices"
    # 180 images tie in accuracy too often to choose by it.
    c.eval.metric = "loss"
    c.eval.mode = "min"
    c.eval.every = "5 epochs"
    c.checkpoint.every = "5 epochs"
    return c


PRESETS = {"demo": demo}


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of one preset."""
    return pick(PRESETS, preset)
