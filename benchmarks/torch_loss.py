"""The official R-Drop loss of logits, in PyTorch."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F


def official(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, alpha: float = 1.0
) -> torch.Tensor:
    """Compute the translation code's loss: [x; x] rows, smoothed CE, two F.kl_div."""
    rows = len(labels)
    log_p = F.log_softmax(logits, -1)
    nll = -log_p.gather(-1, labels.repeat(2)[:, None])
    smooth = -log_p.sum(-1, keepdim=True)
    ce = ((1 - smoothing) * nll + smoothing / logits.shape[-1] * smooth).sum()
    first, second = torch.split(F.log_softmax(logits, -1), rows)
    p, q = torch.split(F.softmax(logits, -1), rows)
    kl = F.kl_div(first, q, reduction="none").sum()
    kl = (kl + F.kl_div(second, p, reduction="none").sum()) / 2
    return (ce + alpha * kl) / rows


def make_loss(
    logits: np.ndarray, labels: np.ndarray, smoothing: float, compiled: bool
) -> Callable[[], torch.Tensor]:
    """Make a call that computes loss and gradient."""
    z = torch.tensor(logits.reshape(-1, logits.shape[-1]), requires_grad=True)
    y = torch.tensor(labels)
    loss_fn = torch.compile(official) if compiled else official

    def call() -> torch.Tensor:
        z.grad = None
        loss = loss_fn(z, y, smoothing)
        loss.backward()
        return loss

    return call


def make_linear_loss(
    hidden: np.ndarray, kernel: np.ndarray, labels: np.ndarray, smoothing: float
) -> Callable[[], torch.Tensor]:
    """Make it for ``hidden @ kernel``, with the gradients of both."""
    h = torch.tensor(hidden.reshape(-1, hidden.shape[-1]), requires_grad=True)
    w = torch.tensor(kernel, requires_grad=True)
    y = torch.tensor(labels)

    def call() -> torch.Tensor:
        h.grad = w.grad = None
        loss = official(h @ w, y, smoothing)
        loss.backward()
        return loss

    return call
