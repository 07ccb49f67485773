"""Abstractive summarization with BART.

Presets:
  demo           docstring bodies to their summary lines; from scratch, a toy
  files          documents and summaries of your own
  cnn_dailymail  the paper's run: BART-large on CNN/DailyMail
  scitldr        abstracts to one sentence, with several references

    python -m rdrop_jax.train --config configs/summarization.py[:PRESET]

docs/summarization.md explains how to get data and weights, and which presets were run.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rdrop_jax.config import base_config, pick

# The commit that adds safetensors; the branch main has pickles.
BART_LARGE = "hf:facebook/bart-large@4422181a85458e2acc57a4c1f845b9dfd60bd411"


def summarization() -> ConfigDict:
    """Return shared settings: BART, and the paper's objective and decoding."""
    c = base_config()
    c.task = "summarization"
    del c.batch_size
    c.batch_tokens = 65_536  # rows x max(source, target length), over all devices
    c.rdrop.alpha = 0.7
    c.rdrop.label_smoothing = 0.1

    c.model.name = "bart"
    c.model.size = "large"  # or base
    c.model.encoder_layers = placeholder(int)  # each of these five overrides the size
    c.model.decoder_layers = placeholder(int)
    c.model.width = placeholder(int)
    c.model.heads = placeholder(int)
    c.model.mlp_width = placeholder(int)
    c.model.max_positions = 1024  # rows of the position tables, without BART's 2 extra
    c.model.dropout = 0.1  # after embeddings and every sublayer
    c.model.attention_dropout = 0.1  # attention weights
    c.model.activation_dropout = 0.0  # after the activation of an MLP
    c.model.layer_dropout = 0.0  # probability of skipping a layer

    c.data.files = ConfigDict()  # of data.name=files: a table, or what
    c.data.files.train = ""  # train.source and train.target begin with; also .gz
    c.data.files.validation = ""  # none: training pairs are held out
    c.data.files.test = ""  # the same
    c.data.validation = placeholder(float)  # share (below 1) or number of pairs to hold
    c.data.test = placeholder(float)  # out; none: 1,000, at most a tenth
    c.data.quoting = "none"  # marks in .tsv are text; "csv": around fields, as in .csv
    c.data.columns = ConfigDict()  # of tables, names and files to predict on
    c.data.columns.source = "article"  # a text, or sentences in a list
    c.data.columns.target = "highlights"  # a text, or several references in a list
    c.data.tokenizer = ""  # file or folder; empty: that of init_from, else train one
    c.data.vocab_size = 50_265  # maximum number of subwords of a trained tokenizer
    c.data.max_length = 1024  # tokens of a document, including <s> and </s>
    c.data.max_target_length = 256  # tokens of a training summary, including both
    c.data.overlong = "truncate"  # longer texts, and count them; or refuse
    c.data.buckets = 8  # shapes of batches, each compiled once
    c.data.rows_multiple = 8  # rows of a microbatch are a multiple; so are devices

    c.eval.batch_size = 32  # documents that are decoded together
    c.eval.metric = "rouge2"
    c.eval.beam = 4
    c.eval.n_best = 1  # summaries per input that predict returns
    c.eval.length_penalty = 2.0  # exponent of the length, including </s>
    c.eval.min_length = 55  # minimum number of tokens before </s>, including <s>
    c.eval.max_length = 140  # maximum number of these tokens
    c.eval.no_repeat_ngram = 3  # size of n-grams that may not repeat; 0: no limit
    c.eval.rouge_tokenizer = (
        "auto"  # english, rouge-score's, which must fit; or unicode
    )
    c.eval.stem = True  # ROUGE compares stems of words
    c.eval.bootstrap = 1000  # bootstrap samples of the intervals; 0: no intervals
    return c


def demo() -> ConfigDict:
    """Summarize docstrings by their summary lines, in minutes on two cores. A toy.

    alpha 0.7, the paper's. At alpha 1, R-Drop gained 1.1 ROUGE-L over plain training
    (five seeds, no verdict) at 1.9 times the time per step; other alphas and dropout
    rates were not compared. On 5,000 e-mails and their subjects (AESLC), where no arm
    learned to write subjects, the result is inconclusive for the same steps, and R-Drop
    is worse for the same time: docs/results.md.
    """
    c = summarization()
    c.total_steps = "8 epochs"
    c.batch_tokens = 2048

    c.data.name = "docstrings"
    c.data.vocab_size = 2000
    c.data.max_length = 64
    c.data.max_target_length = 32
    c.data.buckets = 2

    c.model.encoder_layers = 2
    c.model.decoder_layers = 2
    c.model.width = 128
    c.model.heads = 4
    c.model.mlp_width = 256
    c.model.max_positions = 64

    c.optimizer.lr = 2e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "10%"
    c.optimizer.clip = 1.0
    c.eval.every = "4 epochs"
    c.eval.metric = "rougeL"
    c.eval.length_penalty = 1.0
    c.eval.min_length = 4
    c.eval.max_length = 32
    c.checkpoint.every = "4 epochs"
    return c


def files() -> ConfigDict:
    r"""Your own documents and summaries, from weights of BART.

    python -m rdrop_jax.train --config configs/summarization.py:files \
        --config.data.dir=FOLDER

    FOLDER contains train.jsonl, validation.jsonl and test.jsonl with columns article
    and highlights. With --config.init_from= the preset trains a small model from
    scratch (see SCRATCH), which needs some 100,000 summaries.
    """
    c = summarization()
    c.total_steps = "5 epochs"
    c.batch_tokens = 8192
    c.init_from = "hf:facebook/bart-base"
    c.data.name = "files"
    c.data.files.train = "train.jsonl"
    c.data.files.validation = "validation.jsonl"
    c.data.files.test = "test.jsonl"
    c.data.rows_multiple = 1

    c.model.size = "base"
    c.optimizer.lr = 3e-5
    c.optimizer.schedule = "polynomial"
    c.optimizer.warmup = "5%"
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip = 0.1
    c.eval.every = "1 epochs"
    c.eval.length_penalty = 1.0
    c.eval.min_length = 5
    return c


def cnn_dailymail() -> ConfigDict:
    r"""BART-large on CNN/DailyMail.

    Paper: ROUGE-1/2/L 44.51/21.58/41.24 (44.16/21.28/40.90 without R-Drop), by
    files2rouge.

    python -m rdrop_jax.train --config configs/summarization.py:cnn_dailymail

    Data: hf:abisee/cnn_dailymail/3.0.0, columns article and highlights; 287,113, 13,368
    and 11,490 rows (tensorflow.org/datasets/community_catalog/huggingface/
    cnn_dailymail). Weights: hf:facebook/bart-large at the commit that adds safetensors
    (refs/pr/4; huggingface.co/facebook/bart-large/discussions/4). Not verified:
    downloads from the Hub.

    The published script (examples/summeration_rdrop): dropout and attention dropout
    0.1, alpha 0.7, smoothing 0.1; Adam (0.9, 0.999), decoupled weight decay 0.01, clip
    0.1; linear decay from 3e-5 after 500 steps to 0 at 20,000; 1,024 tokens x 16
    microbatches x 4 GPUs in float16 (8 GPUs in the paper); raw cased text; beam 4,
    length penalty 2, 55 to 140 tokens, no trigram twice. Here bfloat16, blocks
    recomputed, 8 microbatches of 8 documents. Never run here at this size.
    """
    c = summarization()
    c.seed = 1
    c.total_steps = 20_000
    c.accum_steps = 8
    c.init_from = BART_LARGE
    c.data.name = "hf:abisee/cnn_dailymail/3.0.0"

    c.model.dtype = "bfloat16"
    c.model.remat = True
    c.optimizer.lr = 3e-5
    c.optimizer.schedule = "polynomial"
    c.optimizer.warmup = 500
    c.optimizer.weight_decay = 0.01
    c.optimizer.clip = 0.1
    c.eval.every = 5000
    c.checkpoint.every = 1000
    return c


def scitldr() -> ConfigDict:
    r"""Abstracts of papers to one sentence (Cachola et al., 2020), best of several.

    python -m rdrop_jax.train --config configs/summarization.py:scitldr \
        --config.data.dir=FOLDER

    FOLDER is SciTLDR-Data/SciTLDR-A of github.com/allenai/scitldr: train.jsonl,
    dev.jsonl and test.jsonl, also gzipped, with the columns source, sentences in a
    list, and target, a list of references. R-Drop's paper does not use this dataset, so
    there is no reference score. Settings: see `files`. Never run here at this size.
    """
    c = files()
    c.init_from = BART_LARGE
    c.data.files.validation = "dev.jsonl"
    c.data.columns.source = "source"
    c.data.columns.target = "target"
    c.data.max_length = 512
    c.data.max_target_length = 128

    c.model.size = "large"
    c.model.dtype = "bfloat16"
    c.model.remat = True
    c.eval.max_length = 60
    return c


PRESETS = {preset.__name__: preset for preset in (demo, files, cnn_dailymail, scitldr)}

# Defaults of a preset if init_from is empty; `rdrop_jax.flags.load` applies them.
_SMALL = {
    "total_steps": "20 epochs",
    "model.encoder_layers": 2,
    "model.decoder_layers": 2,
    "model.width": 256,
    "model.heads": 4,
    "model.mlp_width": 512,
    "data.vocab_size": 8000,
    "optimizer.lr": 1e-3,
    "optimizer.clip": 1.0,
}
SCRATCH = {"files": _SMALL, "scitldr": _SMALL}


def get_config(preset: str = "demo") -> ConfigDict:
    """Return the config of one preset."""
    return pick(PRESETS, preset)
