"""The official formulation of an R-Drop step on a ViT, in PyTorch.

As in the published code: two forward calls, and F.kl_div in both directions on
log_softmax and softmax. The model is that of `rdrop_jax.models.vit`, with PyTorch's
fused attention and fused AdamW.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width) for _ in range(4)
        )
        self.mlp_in, self.mlp_out = (
            nn.Linear(width, mlp_width),
            nn.Linear(mlp_width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        h = self.attention_norm(x)
        q, k, v = (
            project(h).view(batch, time, self.heads, -1).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        h = F.dropout(
            F.gelu(self.mlp_in(self.mlp_norm(x))), self.dropout, self.training
        )
        return x + F.dropout(self.mlp_out(h), self.dropout, self.training)


class ViT(nn.Module):
    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        classes: int,
        patch: int,
        patches: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.patch, self.dropout = patch, dropout
        self.embedding = nn.Linear(patch * patch * 3, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, width) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(width, heads, mlp_width, dropout) for _ in range(layers))
        )
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batch, height, width, channels = images.shape
        p = self.patch
        x = images.reshape(batch, height // p, p, width // p, p, channels)
        x = self.embedding(x.transpose(2, 3).reshape(batch, -1, p * p * channels))
        x = torch.cat([self.class_token.expand(batch, -1, -1), x], 1) + self.positions
        x = self.blocks(F.dropout(x, self.dropout, self.training))
        return self.head(self.norm(x)[:, 0])


def official_kl(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute half the sum of both KLs over all entries, with four softmaxes."""
    log_p, log_q = F.log_softmax(a, -1), F.log_softmax(b, -1)
    p, q = F.softmax(a, -1), F.softmax(b, -1)
    one = F.kl_div(log_p, q, reduction="none").sum()
    other = F.kl_div(log_q, p, reduction="none").sum()
    return (one + other) / 2


def make_step(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float,
    compiled: bool,
    tx: torch.optim.Optimizer | None = None,
    clip: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Callable[[], float]:
    """Make a step of the official formulation; plain training if alpha is 0.

    Args:
      model: the model, on the device of images and labels.
      images: images [rows, height, width, channels].
      labels: class ids [rows].
      alpha: weight of the divergence.
      compiled: True to compile the loss.
      tx: optimizer of the model's parameters; None for AdamW.
      clip: maximum norm of the gradient; 0 does not clip.
      dtype: dtype of automatic mixed precision; None for float32.
    """
    params = list(model.parameters())
    tx = tx or torch.optim.AdamW(params, lr=1e-3, weight_decay=1e-4, fused=True)
    rows = len(labels)

    def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            a = model(images)
            if alpha == 0.0:
                return F.cross_entropy(a, labels)
            b = model(images)
            ce = F.cross_entropy(a, labels) + F.cross_entropy(b, labels)
            return ce + alpha * official_kl(a, b) / rows

    loss_fn = torch.compile(loss_fn) if compiled else loss_fn

    def step() -> float:
        tx.zero_grad(set_to_none=True)
        loss = loss_fn(images, labels)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(params, clip)
        tx.step()
        return loss.item()

    return step
