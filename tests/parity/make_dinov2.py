"""Makes tests/parity/dinov2: weights of PyTorch's DINOv2, and its logits.

    make parity

Weights are random, every array of them. The second and third size resize positions.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

FOLDER = Path(__file__).parent / "dinov2"
SIZES = (35, 21, 49)
CONFIG = Dinov2Config(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    mlp_ratio=2,
    image_size=SIZES[0],
    patch_size=7,
    num_labels=5,
    layer_norm_eps=1e-2,  # large enough to be seen
)


def main():
    torch.manual_seed(0)
    model = Dinov2ForImageClassification(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(FOLDER)
    arrays = {}
    for size in SIZES:
        torch.manual_seed(size)
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            logits = model(images).logits
        arrays[f"images_{size}"] = images.permute(0, 2, 3, 1).contiguous().numpy()
        arrays[f"logits_{size}"] = logits.numpy()
    np.savez(FOLDER / "logits.npz", **arrays)


if __name__ == "__main__":
    main()
