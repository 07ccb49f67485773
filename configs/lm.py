"""Language modelling: the next token of running text.

Presets:
  demo: docstrings of the installed numpy and scipy, in byte pairs; nothing to download.
        A toy.
        python -m rdrop_jax.train --config configs/lm.py
  chars: characters of your own text file.
        python -m rdrop_jax.train --config configs/lm.py:chars \
            --config.data.files.train=book.txt
  files: your own text files, in byte pairs or words.
  wikitext103: the paper's Transformer, 8 GPUs. Test perplexity 26.62 without R-Drop,
        24.94 with it (arXiv 2106.14448, table 5); one seed. The published criterion of
        this model does not run, so alpha 1 is the paper's and its script's.
  wikitext103_adaptive: the paper's Transformer with adaptive input and softmax. Test
        perplexity 18.87 without, 18.07 with it. The published criterion does not run
        either.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rdrop_jax.config import base_config, pick


def lm() -> ConfigDict:
    """Return the settings that all presets share."""
    c = base_config()
    c.task = "language_model"
    c.batch_size = 32  # blocks per step
    c.rdrop.alpha = 1.0
    c.rdrop.clusters = "exact"  # of an adaptive softmax; or gold_cluster, as published

    c.model.name = "transformer"  # or adaptive_transformer
    c.model.size = "gpt"  # or mini; adaptive_transformer: wiki103, mini
    c.model.layers = placeholder(int)  # each of these four overrides the size
    c.model.width = placeholder(int)
    c.model.heads = placeholder(int)
    c.model.mlp_width = placeholder(int)
    c.model.activation = "gelu"  # or relu
    c.model.positions = "fairseq"  # sinusoids; or marian, or learned
    c.model.dropout = 0.1  # after the embedding and every sublayer
    c.model.attention_dropout = 0.1  # attention weights
    c.model.activation_dropout = 0.0  # after the activation of an MLP
    c.model.layer_dropout = 0.0  # probability of skipping a layer
    c.model.softmax_dropout = 0.0  # adaptive: before the output and in each tail
    c.model.cutoffs = (20_000, 60_000)  # adaptive: first token id of each tail
    c.model.factor = 4  # adaptive: width ratio of successive clusters

    c.data.name = "files"  # or docstrings, hf:ORG/NAME, tfds:NAME
    c.data.files = ConfigDict()  # text, also as .gz, or names of splits
    c.data.files.train = ""
    c.data.files.validation = ""  # none: the end of train, before test, is held out
    c.data.files.test = ""  # none: the end of train
    c.data.columns = ConfigDict()
    c.data.columns.text = "text"  # of a dataset by name
    c.data.validation = placeholder(float)  # share of the characters (below 1) or
    c.data.test = placeholder(float)  # number of lines to hold out; none: 5 %
    c.data.tokens = "words"  # between spaces; or characters, or bpe: byte pairs
    c.data.vocab_size = 0  # maximum number of tokens; 0: all
    c.data.min_count = 1  # rarer words and characters map to the unknown token
    c.data.vocabulary = ""  # vocabulary file with one token per line; empty: build one
    c.data.block_size = 512  # tokens of a training block

    c.optimizer.b2 = 0.98
    c.eval.batch_size = 32
    c.eval.metric = "perplexity"
    c.eval.block_size = 512  # tokens of an evaluation block
    c.eval.context = 400  # number of these that serve only as context
    c.eval.predict = "generate"  # or score; --mode of predict
    c.eval.new_tokens = 64  # tokens to generate after a prompt
    c.eval.temperature = 1.0  # 0: greedy decoding
    c.eval.top_p = 0.9  # nucleus sampling: total probability of the tokens to sample
    c.eval.sample_seed = 0  # seed of sampling
    return c


def small() -> ConfigDict:
    """Return settings of a model that trains in minutes on two cores."""
    c = lm()
    c.batch_size = 16
    c.model.size = "mini"
    c.data.block_size = 64
    c.optimizer.lr = 3e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "5%"
    c.optimizer.clip = 1.0
    c.eval.block_size = 64
    c.eval.context = 32
    c.eval.new_tokens = 32
    c.eval.every = "20%"
    c.checkpoint.every = "20%"
    return c


def demo() -> ConfigDict:
    """Docstrings of numpy and scipy, in minutes on two cores. A toy."""
    c = small()
    c.total_steps = 800
    c.data.name = "docstrings"
    c.data.tokens = "bpe"
    c.data.vocab_size = 2000
    return c


def chars() -> ConfigDict:
    """Train on the characters of your own text file."""
    c = small()
    c.total_steps = 2000
    c.data.tokens = "characters"
    c.data.block_size = 128
    c.eval.block_size = 128
    c.eval.context = 64
    c.eval.new_tokens = 64
    c.eval.metric = "bits_per_character"
    return c


def files() -> ConfigDict:
    """Train on your own text files, ``data.files.train``, in byte pairs.

    alpha 1, dropout 0.1. With a small model on 250,000 tokens of Brown, R-Drop lowered
    perplexity by 4.6 (132.5 to 128.0; five seeds, no verdict), at 1.9 times the time
    per step. On 300,000 words of WikiText-2 it lowered perplexity by 4.6 as well (128.0
    to 123.4; six seeds, p 0.03), at 2.4 times the time per step. With an adaptive
    softmax and Brown it lowered perplexity by 4.0 (131.2 to 127.2; six seeds: it
    helps), at 2.5 times the time per step. Other alphas were not tested:
    docs/results.md.
    """
    c = lm()
    c.total_steps = "10 epochs"
    c.model.layers = 6
    c.model.width = 512
    c.model.heads = 8
    c.model.mlp_width = 2048
    c.data.tokens = "bpe"
    c.data.vocab_size = 10_000
    c.data.block_size = 256
    c.optimizer.lr = 5e-4
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "5%"
    c.optimizer.weight_decay = 0.01
    c.eval.block_size = 256
    c.eval.context = 128
    return c


def wikitext103() -> ConfigDict:
    """The paper's Transformer on WikiText-103.

    python -m rdrop_jax.train --config configs/lm.py:wikitext103

    Data: hf:Salesforce/wikitext/wikitext-103-v1, column text, tokenized and with <unk>
    (huggingface.co/datasets/Salesforce/wikitext). Merity et al., 2016 (arXiv
    1609.07843, table 1), count 103,227,021, 217,646 and 245,569 tokens, ends of lines
    included, of 267,735 types. Not verified: downloads from the Hub.

    8 GPUs x 16 microbatches of 2,000 tokens (3 blocks of 512) give 384 blocks per step.
    """
    c = lm()
    c.seed = 1
    c.total_steps = 50_000
    c.batch_size = 384
    c.accum_steps = 16

    c.data.name = "hf:Salesforce/wikitext/wikitext-103-v1"
    c.optimizer.lr = 5e-4
    c.optimizer.schedule = "inverse_sqrt"
    c.optimizer.warmup = 4000
    c.optimizer.warmup_init = 1e-7
    c.optimizer.weight_decay = 0.01
    return c


def wikitext103_adaptive() -> ConfigDict:
    """The paper's Transformer with adaptive input and softmax on WikiText-103.

    8 heads as in fairseq's architecture; the paper reports 16. 286,000 steps as in the
    baseline; the published script resumes from its checkpoint and trains to 320,000.
    """
    c = wikitext103()
    c.total_steps = 286_000
    c.batch_size = 24
    c.accum_steps = 3

    c.model.name = "adaptive_transformer"
    c.model.size = "wiki103"
    c.model.activation = "relu"
    c.model.dropout = 0.3
    c.model.activation_dropout = 0.1
    c.model.softmax_dropout = 0.2
    c.data.block_size = 3072

    c.optimizer.name = "nag"
    c.optimizer.momentum = 0.99
    c.optimizer.weight_decay = 0.0
    c.optimizer.clip = 0.1
    c.optimizer.lr = 1.0
    c.optimizer.schedule = "cosine_restarts"
    c.optimizer.warmup = 16_000
    c.optimizer.end_lr = 1e-4
    c.optimizer.period = 270_000
    c.optimizer.period_mult = 2.0
    c.optimizer.shrink = 0.75
    return c


PRESETS = {
    "demo": demo,
    "chars": chars,
    "files": files,
    "wikitext103": wikitext103,
    "wikitext103_adaptive": wikitext103_adaptive,
}


def get_config(preset: str = "demo") -> ConfigDict:
    """Return the config of one preset."""
    return pick(PRESETS, preset)
