"""python -m rdrop_jax.evaluate --workdir runs/vit [--split test]"""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli import process
    from rdrop_jax.cli.evaluate import evaluate as evaluate
    from rdrop_jax.cli.evaluate import main as main

if __name__ == "__main__":
    process.run(main)
