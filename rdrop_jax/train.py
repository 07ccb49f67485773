"""python -m rdrop_jax.train --config configs/vit.py [--config.rdrop.alpha=0]"""

from rdrop_jax import extras

with extras.explained(__name__, "train"):
    from rdrop_jax.cli import process
    from rdrop_jax.cli.train import check_start as check_start
    from rdrop_jax.cli.train import main as main
    from rdrop_jax.cli.train import train as train
    from rdrop_jax.training.callbacks import Callback as Callback

if __name__ == "__main__":
    process.run(main)
