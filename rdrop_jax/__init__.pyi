"""What type checkers and editors see of the names that load on first use."""

from rdrop_jax.core.adapters import linen_forward as linen_forward
from rdrop_jax.core.adapters import nnx_forward as nnx_forward
from rdrop_jax.core.consistency import consistency as consistency
from rdrop_jax.core.ctc import rdrop_ctc_loss as rdrop_ctc_loss
from rdrop_jax.core.dropout import dropout as dropout
from rdrop_jax.core.dropout import dropout_mask as dropout_mask
from rdrop_jax.core.dropout import layer_drop as layer_drop
from rdrop_jax.core.kernels.adaptive_softmax import (
    adaptive_rdrop_loss as adaptive_rdrop_loss,
)
from rdrop_jax.core.large_vocab import LinearOutput as LinearOutput
from rdrop_jax.core.large_vocab import (
    large_vocab_consistency as large_vocab_consistency,
)
from rdrop_jax.core.large_vocab import large_vocab_rdrop_loss as large_vocab_rdrop_loss
from rdrop_jax.core.losses import bernoulli_cross_entropy as bernoulli_cross_entropy
from rdrop_jax.core.losses import bernoulli_symmetric_kl as bernoulli_symmetric_kl
from rdrop_jax.core.losses import js_divergence as js_divergence
from rdrop_jax.core.losses import kl_divergence as kl_divergence
from rdrop_jax.core.losses import softmax_cross_entropy as softmax_cross_entropy
from rdrop_jax.core.losses import squared_difference as squared_difference
from rdrop_jax.core.losses import squared_error as squared_error
from rdrop_jax.core.losses import symmetric_kl as symmetric_kl
from rdrop_jax.core.metrics import Mean as Mean
from rdrop_jax.core.objective import rdrop_loss as rdrop_loss
from rdrop_jax.core.objective import rdrop_multilabel_loss as rdrop_multilabel_loss
from rdrop_jax.core.objective import rdrop_regression_loss as rdrop_regression_loss
from rdrop_jax.core.passes import check_stochastic as check_stochastic
from rdrop_jax.core.passes import forward_passes as forward_passes
from rdrop_jax.core.terms import multilabel_terms as multilabel_terms
from rdrop_jax.core.terms import rdrop_terms as rdrop_terms
from rdrop_jax.core.terms import regression_terms as regression_terms
from rdrop_jax.core.train_state import TrainState as TrainState
from rdrop_jax.core.train_state import init_state as init_state
from rdrop_jax.core.train_step import make_eval_step as make_eval_step
from rdrop_jax.core.train_step import make_train_step as make_train_step

__version__: str
