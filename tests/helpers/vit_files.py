"""Stored weights of a tiny Vision Transformer and its module."""

from pathlib import Path

from rdrop_jax.models.sizes import Size
from rdrop_jax.models.vit import ViT

PARITY = Path(__file__).parents[1] / "parity" / "vit"


GOOGLE, SAFE = PARITY / "google.npz", PARITY / "model.safetensors"


MODEL = ViT(Size(2, 24, 3, 40), num_classes=5, patch_size=4, norm_eps=1e-2)
