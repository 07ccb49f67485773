"""python -m rdrop_jax.compile --config configs/vit.py:cifar100 --target tpu:v5e:2x4"""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli import process
    from rdrop_jax.cli.compile import main as main

if __name__ == "__main__":
    process.run(main)
