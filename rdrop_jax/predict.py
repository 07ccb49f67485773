"""python -m rdrop_jax.predict --workdir runs/vit --input photo.jpg more_photos/"""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli import process
    from rdrop_jax.cli.predict import load as load
    from rdrop_jax.cli.predict import main as main

if __name__ == "__main__":
    process.run(main)
