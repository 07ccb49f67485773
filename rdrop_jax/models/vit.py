"""Vision Transformer (Dosovitskiy et al., 2021) with the dropout sites of R-Drop.

The architecture is that of Hugging Face's ViT, including exact (erf) GELU. Google's
code uses the tanh approximation of GELU, which differs by at most 5e-4.

Dropout is applied after the embedding and twice in each MLP. The rate on attention
weights also applies after the attention output; it is 0 by default, as in the R-Drop
code.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.models.layers import Attention, Dense, Dropout, Dtype, Mlp


class Size(NamedTuple):
    """Depth and widths of an encoder."""

    layers: int
    width: int
    heads: int
    mlp_width: int


SIZES = {
    "mini": Size(4, 64, 4, 128),
    "Ti": Size(12, 192, 3, 768),
    "S": Size(12, 384, 6, 1536),
    "B": Size(12, 768, 12, 3072),
    "L": Size(24, 1024, 16, 4096),
}


class Block(nn.Module):
    """Pre-norm encoder block."""

    size: Size
    dropout: float
    attention_dropout: float
    dtype: Dtype
    masks: str
    norm_eps: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time width"], train: bool
    ) -> Float[Array, "batch time width"]:
        h = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="attention_norm")(x)
        rate = self.attention_dropout
        attention = Attention(
            self.size.heads, rate, rate, self.dtype, self.masks, name="attention"
        )
        x = x + attention(h, h, train=train)
        h = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="mlp_norm")(x)
        mlp = Mlp(self.size.mlp_width, self.dropout, self.dtype, self.masks, name="mlp")
        return x + mlp(h, train=train)


class ViT(nn.Module):
    """Image classifier over patches and a class token.

    Attributes:
      size: depth and widths.
      num_classes: number of outputs of the head, whose kernel is initialized to zero.
      patch_size: patch side in pixels; must divide height and width of the image.
      dropout: dropout rate after the embedding and in the MLPs.
      attention_dropout: dropout rate on attention weights and attention output.
      dtype: dtype of the activations.
      remat: recompute each block in the backward pass.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      norm_eps: epsilon of the LayerNorms.
    """

    size: Size
    num_classes: int
    patch_size: int
    dropout: float = 0.1
    attention_dropout: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool = False
    masks: str = "hash"
    norm_eps: float = 1e-6

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], *, train: bool
    ) -> Float[Array, "batch classes"]:
        width = self.size.width
        patches = _patches(images.astype(self.dtype), self.patch_size)
        x = Dense(width, dtype=self.dtype, name="embedding")(patches)
        start = self.param(
            "class_token", nn.initializers.zeros, (1, 1, width), jnp.float32
        )
        start = jnp.broadcast_to(start.astype(self.dtype), (x.shape[0], 1, width))
        x = jnp.concatenate([start, x], axis=1)
        positions = self.param(
            "positions",
            nn.initializers.normal(0.02),
            (1, x.shape[1], width),
            jnp.float32,
        )
        x = Dropout(self.dropout, self.masks)(
            x + positions.astype(self.dtype), train=train
        )
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        for i in range(self.size.layers):
            x = block(
                self.size,
                self.dropout,
                self.attention_dropout,
                self.dtype,
                self.masks,
                self.norm_eps,
                name=f"block_{i}",
            )(x, train)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)
        head = Dense(self.num_classes, self.dtype, nn.initializers.zeros, name="head")
        return head(x[:, 0])


def _patches(
    images: Float[Array, "batch height width channels"], size: int
) -> Float[Array, "batch patches pixels"]:
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(
            f"patch_size must divide the image: found {size}, {height}x{width}"
        )
    rows, columns = height // size, width // size
    x = images.reshape(batch, rows, size, columns, size, channels)
    return x.swapaxes(2, 3).reshape(batch, rows * columns, size * size * channels)
