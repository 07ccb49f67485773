"""A step of fairseq's Transformer with its R-Drop criterion, in PyTorch.

As in the published code for translation, rows are doubled, [x; x], and processed in one
call, with label-smoothed CE and F.kl_div in both directions. The model is that
of `rdrop_jax.models.seq2seq`: post-norm, ReLU, one table, with PyTorch's fused
attention and fused AdamW.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.torch_loss import official


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(
        self, x: torch.Tensor, y: torch.Tensor, where: torch.Tensor | None
    ) -> torch.Tensor:
        q, k, v = (
            project(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, z in ((self.query, x), (self.key, y), (self.value, y))
        )
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=where, is_causal=where is None
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Block of the encoder, or with ``cross`` of the decoder."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, dropout: float, cross: bool
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention = Attention(width, heads)
        self.cross = Attention(width, heads) if cross else None
        self.mlp_in, self.mlp_out = (
            nn.Linear(width, mlp_width),
            nn.Linear(mlp_width, width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 + cross))

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None, where: torch.Tensor
    ) -> torch.Tensor:
        def add(x: torch.Tensor, y: torch.Tensor, norm: nn.Module) -> torch.Tensor:
            return norm(x + F.dropout(y, self.dropout, self.training))

        x = add(x, self.attention(x, x, None if self.cross else where), self.norms[0])
        if self.cross is not None and memory is not None:
            x = add(x, self.cross(x, memory, where), self.norms[2])
        return add(x, self.mlp_out(F.relu(self.mlp_in(x))), self.norms[1])


class Transformer(nn.Module):
    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        vocab: int,
        positions: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dropout, self.width = dropout, width
        self.table = nn.Parameter(torch.randn(vocab, width) * width**-0.5)
        self.register_buffer("positions", torch.randn(positions, width))
        sizes = (width, heads, mlp_width, dropout)
        self.encoder, self.decoder = (
            nn.ModuleList(Block(*sizes, cross) for _ in range(layers))
            for cross in (False, True)
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        x = F.embedding(ids, self.table) * self.width**0.5
        x = x + self.positions[: ids.shape[1]]
        return F.dropout(x, self.dropout, self.training)

    def forward(
        self, src: torch.Tensor, where: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor:
        memory = self.embed(src)
        for block in self.encoder:
            memory = block(memory, None, where)
        x = self.embed(inputs)
        for block in self.decoder:
            x = block(x, memory, where)
        return x @ self.table.T


def make_step(
    model: Transformer,
    batch: Mapping[str, np.ndarray],
    *,
    alpha: float,
    smoothing: float,
) -> Callable[[], float]:
    """Make a step of the official formulation."""
    tx = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.98), fused=True)
    data = {k: torch.tensor(np.concatenate([x, x])) for k, x in batch.items()}
    src, inputs, labels = (data[k].long() for k in ("src", "inputs", "labels"))
    src_where = data["src_where"][:, None, None]
    kept = data["where"]

    def step() -> float:
        tx.zero_grad(set_to_none=True)
        logits = model(src, src_where, inputs)
        loss = official(logits[kept], labels[kept][: kept.sum() // 2], smoothing, alpha)
        loss.backward()
        tx.step()
        return loss.item()

    return step
