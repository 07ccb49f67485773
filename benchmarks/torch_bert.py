"""A fine-tuning step of transformers' BERT with the published R-Drop loss, PyTorch."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers


def make_step(
    batch: Mapping[str, np.ndarray], classes: int, lr: float, **shape: Any
) -> Callable[[], float]:
    """Make a step: two passes, CE of both, 0.5 times the summed divergence, clipping.

    This is the published code for BERT: sequential passes, cross entropy averaged over
    the batch, divergence summed by F.kl_div in both directions.
    """
    config = transformers.BertConfig(num_labels=classes, **shape)
    model = transformers.BertForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, (0.9, 0.98), 1e-6, 0.01, fused=True
    )
    time = batch["tokens"].shape[1]
    where = np.arange(time) < batch["length"][:, None]
    inputs = {
        "input_ids": torch.tensor(batch["tokens"]).long(),
        "token_type_ids": torch.tensor(batch["types"]).long(),
        "attention_mask": torch.tensor(where).long(),
    }
    labels = torch.tensor(batch["label"]).long()

    def call() -> float:
        optimizer.zero_grad()
        a, b = (model(**inputs).logits for _ in range(2))
        ce = F.cross_entropy(a, labels) + F.cross_entropy(b, labels)
        kl = F.kl_div(F.log_softmax(a, -1), F.softmax(b, -1), reduction="none").sum()
        kl = (
            kl
            + F.kl_div(F.log_softmax(b, -1), F.softmax(a, -1), reduction="none").sum()
        )
        loss = ce + 0.5 * kl / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return call
