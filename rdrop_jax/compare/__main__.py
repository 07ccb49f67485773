"""python -m rdrop_jax.compare --config configs/vit.py --alphas 0,1,5 --seeds 6"""

from rdrop_jax import extras

with extras.explained(__name__, "train", "report"):
    from rdrop_jax.cli import process
    from rdrop_jax.compare.program import main

if __name__ == "__main__":
    process.run(main)
