"""Vision Transformer (Dosovitskiy et al., 2021) with the dropout sites of R-Drop.

The architecture is that of Hugging Face's ViT, including exact (erf) GELU. Google's
code uses the tanh approximation of GELU, which differs by at most 5e-4.

Dropout is applied after the embedding and twice in each MLP. The rate on attention
weights also applies after the attention output; it is 0 by default, as in the R-Drop
code.

DINOv2 (Oquab et al., 2023) adds LayerScale to the blocks, and its head reads the class
token and the mean of the patches. Its largest model has SwiGLU in the MLPs.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from rdrop_jax.models.blocks import BlockSettings, Rates, block_class
from rdrop_jax.models.layers import Dense, Dropout, Dtype
from rdrop_jax.models.sizes import Size

SIZES = {
    "mini": Size(4, 64, 4, 128),
    "Ti": Size(12, 192, 3, 768),
    "S": Size(12, 384, 6, 1536),
    "B": Size(12, 768, 12, 3072),
    "L": Size(24, 1024, 16, 4096),
    "g": Size(40, 1536, 24, 6144),
}

_LECUN = nn.initializers.lecun_normal()


class ViT(nn.Module):
    """Image classifier over patches and a class token.

    Attributes:
      size: depth and widths.
      num_classes: number of outputs of the head, whose kernel is initialized to zero.
      patch_size: patch side in pixels; must divide height and width of the image.
      dropout: dropout rate after the embedding and in the MLPs.
      attention_dropout: dropout rate on attention weights and attention output.
      dtype: dtype of the activations.
      remat: see `layers.rematerialized`.
      masks: dropout masks, "hash" or "bernoulli"; see `rdrop_jax.dropout`.
      fused_attention: see `Attention`.
      norm_eps: epsilon of the LayerNorms.
      kind: "vit" or "dinov2".
      activation: "gelu", or "swiglu", whose hidden layer has two thirds of the MLP
        width, rounded up to a multiple of 8.
      drop_path: rate of stochastic depth in the last block; 0 in the first, and linear
        between them.
    """

    size: Size
    num_classes: int
    patch_size: int
    dropout: float = 0.1
    attention_dropout: float = 0.0
    dtype: Dtype = jnp.float32
    remat: bool | str = False
    masks: str = "hash"
    fused_attention: bool = False
    norm_eps: float = 1e-6
    kind: str = "vit"
    activation: str = "gelu"
    drop_path: float = 0.0

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
        block, last = block_class(self.remat), max(1, self.size.layers - 1)
        for i in range(self.size.layers):
            settings = self._settings(self.drop_path * i / last)
            x = block(settings, name=f"block_{i}")(x, None, None, train)
        x = nn.LayerNorm(self.norm_eps, dtype=self.dtype, name="norm")(x)
        head = Dense(self.num_classes, jnp.float32, nn.initializers.zeros, name="head")
        if self.kind == "vit":
            return head(x[:, 0])
        return head(jnp.concatenate([x[:, 0], x[:, 1:].mean(1)], axis=1))

    def _settings(self, path: float) -> BlockSettings:
        rate, gated = self.attention_dropout, self.activation == "swiglu"
        width = self.size.mlp_width
        return BlockSettings(
            self.size.heads,
            -(-int(width * 2 / 3) // 8) * 8 if gated else width,
            Rates(self.dropout, rate, self.dropout, attention_out=rate, path=path),
            True,
            "silu" if gated else "gelu",
            self.dtype,
            self.masks,
            self.norm_eps,
            (_LECUN, _LECUN, _LECUN),
            1.0 if self.kind == "dinov2" else None,
            gated,
            self.fused_attention,
        )


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
