"""Allowed values of options. Imports nothing, so that config checks need no jax."""

DIVERGENCES = ("symmetric_kl", "forward_kl", "reverse_kl", "js", "squared")
FRAMES = ("sum", "mean")
HOW = ("auto", "unroll", "vmap")
MASKS = ("hash", "bernoulli")
REMAT_POLICIES = (
    "nothing_saveable",
    "dots_with_no_batch_dims_saveable",
    "dots_saveable",
)
OBJECTIVE_SCALES = ("sum", "mean")
SMOOTHINGS = ("uniform", "fairseq")
STOP_GRADIENTS = ("none", "targets")
