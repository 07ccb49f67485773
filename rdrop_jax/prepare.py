"""python -m rdrop_jax.prepare imagenet2012 --data_dir DATA"""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli import process
    from rdrop_jax.cli.prepare import main as main

if __name__ == "__main__":
    process.run(main)
