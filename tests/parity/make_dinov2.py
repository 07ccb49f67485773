"""Makes dinov2 and swiglu in tests/parity: weights of PyTorch's DINOv2, and logits.

    make parity

Weights are random, every array of them. The second and third size resize positions.
SwiGLU has 24 hidden features, two thirds of 30 rounded up.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import Dinov2Config, Dinov2ForImageClassification

SIZES = {"dinov2": (35, 21, 49), "swiglu": (14,)}
WIDTHS = {
    "dinov2": {"hidden_size": 24, "mlp_ratio": 2},
    "swiglu": {"hidden_size": 30, "mlp_ratio": 1, "use_swiglu_ffn": True},
}


def make(name):
    folder, sizes = Path(__file__).parent / name, SIZES[name]
    config = Dinov2Config(
        **WIDTHS[name],
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=sizes[0],
        patch_size=7,
        num_labels=5,
        layer_norm_eps=1e-2,  # large enough to be seen
    )
    torch.manual_seed(0)
    model = Dinov2ForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    arrays = {}
    for size in sizes:
        torch.manual_seed(size)
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            logits = model(images).logits
        arrays[f"images_{size}"] = images.permute(0, 2, 3, 1).contiguous().numpy()
        arrays[f"logits_{size}"] = logits.numpy()
    np.savez(folder / "logits.npz", **arrays)


if __name__ == "__main__":
    for each in SIZES:
        make(each)
