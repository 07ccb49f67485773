"""Makes tests/parity/vit: weights of PyTorch's ViT in both layouts, and its logits.

    make parity

Weights are random, every array of them, so that no name can take another's place. The
.npz is written from the PyTorch module itself, by a mapping of its own.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from transformers import ViTConfig, ViTForImageClassification

FOLDER = Path(__file__).parent / "vit"
SIZES = (16, 24)  # the second through resized positions
CONFIG = ViTConfig(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    image_size=SIZES[0],
    patch_size=4,
    num_labels=5,
    layer_norm_eps=1e-2,  # large enough to be seen
)


def build():
    """The model with random weights."""
    torch.manual_seed(0)
    model = ViTForImageClassification(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def to_npz(model):
    """The layout of google-research/vision_transformer, module by module."""
    vit, width, heads = model.vit, CONFIG.hidden_size, CONFIG.num_attention_heads
    arrays = {}

    def norm(name, module):
        arrays[f"{name}/scale"], arrays[f"{name}/bias"] = module.weight, module.bias

    def dense(name, module):
        arrays[f"{name}/kernel"] = module.weight.T
        arrays[f"{name}/bias"] = module.bias

    patches = vit.embeddings.patch_embeddings.projection
    arrays["embedding/kernel"] = torch.einsum("ochw->hwco", patches.weight)
    arrays["embedding/bias"] = patches.bias
    arrays["cls"] = vit.embeddings.cls_token
    positions = vit.embeddings.position_embeddings
    arrays["Transformer/posembed_input/pos_embedding"] = positions
    for i, layer in enumerate(vit.layers):
        block = f"Transformer/encoderblock_{i}"
        norm(f"{block}/LayerNorm_0", layer.layernorm_before)
        norm(f"{block}/LayerNorm_2", layer.layernorm_after)
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            module = getattr(layer.attention, f"{name[0]}_proj")
            kernel = module.weight.view(heads, width // heads, width)
            arrays[f"{attention}/{name}/kernel"] = torch.einsum("hdi->ihd", kernel)
            arrays[f"{attention}/{name}/bias"] = module.bias.view(heads, -1)
        out = layer.attention.o_proj
        kernel = out.weight.view(width, heads, width // heads)
        arrays[f"{attention}/out/kernel"] = torch.einsum("ohd->hdo", kernel)
        arrays[f"{attention}/out/bias"] = out.bias
        dense(f"{block}/MlpBlock_3/Dense_0", layer.mlp.fc1)
        dense(f"{block}/MlpBlock_3/Dense_1", layer.mlp.fc2)
    norm("Transformer/encoder_norm", vit.layernorm)
    dense("head", model.classifier)
    return {name: x.detach().contiguous().numpy() for name, x in arrays.items()}


def resized(model, size):
    """The model for another image size; bilinear, corners on corners."""
    config = ViTConfig(**(CONFIG.to_dict() | {"image_size": size}))
    other = ViTForImageClassification(config).eval()
    state = model.state_dict()
    name = "vit.embeddings.position_embeddings"
    old, new = (x // CONFIG.patch_size for x in (CONFIG.image_size, size))
    grid = state[name][:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = interpolate(grid, (new, new), mode="bilinear", align_corners=True)
    grid = grid.flatten(2).transpose(1, 2)
    other.load_state_dict(state | {name: torch.cat([state[name][:, :1], grid], 1)})
    return other


def main():
    model = build()
    model.save_pretrained(FOLDER)
    np.savez(FOLDER / "google.npz", **to_npz(model))
    arrays = {}
    for size in SIZES:
        torch.manual_seed(size)
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            logits = resized(model, size)(images).logits
        arrays[f"images_{size}"] = images.permute(0, 2, 3, 1).contiguous().numpy()
        arrays[f"logits_{size}"] = logits.numpy()
    np.savez(FOLDER / "logits.npz", **arrays)


if __name__ == "__main__":
    main()
