"""python -m rdrop_jax.export --workdir runs/vit --output exported"""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli import process
    from rdrop_jax.cli.export import export as export
    from rdrop_jax.cli.export import main as main

if __name__ == "__main__":
    process.run(main)
