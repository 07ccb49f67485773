"""R-Drop for JAX: regularized dropout by two passes and a symmetric KL.

The names below are imported on first use, so that importing the package is fast and
programs can check their configuration before jax starts.
"""

import importlib

_HOME = {
    "core.adapters": ("linen_forward", "nnx_forward"),
    "core.kernels.adaptive_softmax": ("adaptive_rdrop_loss",),
    "core.consistency": ("consistency",),
    "core.ctc": ("rdrop_ctc_loss",),
    "core.dropout": ("dropout", "dropout_mask", "layer_drop"),
    "core.large_vocab": (
        "LinearOutput",
        "large_vocab_consistency",
        "large_vocab_rdrop_loss",
    ),
    "core.losses": (
        "bernoulli_cross_entropy",
        "bernoulli_symmetric_kl",
        "js_divergence",
        "kl_divergence",
        "softmax_cross_entropy",
        "squared_difference",
        "squared_error",
        "symmetric_kl",
    ),
    "core.metrics": ("Mean",),
    "core.passes": ("check_stochastic", "forward_passes"),
    "core.objective": (
        "rdrop_loss",
        "rdrop_multilabel_loss",
        "rdrop_regression_loss",
    ),
    "core.train_step": ("make_eval_step", "make_train_step"),
    "core.train_state": ("TrainState", "init_state"),
    "core.terms": ("multilabel_terms", "rdrop_terms", "regression_terms"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULE_OF[name]}")
    return getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
