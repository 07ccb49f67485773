"""Translation with an encoder-decoder Transformer.

Presets:
  demo: names of emoji, countries, languages and currencies from English to German,
        which come with two installed packages; nothing to download. A toy.
        python -m rdrop_jax.train --config configs/nmt.py
        2 CPU cores: see docs/translation.md for time and scores.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from rdrop_jax.config import base_config, pick


def nmt() -> ConfigDict:
    """What all presets share: the paper's model and decoding."""
    c = base_config()
    c.task = "translation"
    c.batch_size = 4096  # tokens: rows times the longer side, over all devices
    c.rdrop.alpha = 5.0
    c.rdrop.label_smoothing = 0.1

    c.model.name = "transformer_iwslt_de_en"  # or transformer_vaswani_wmt_en_de_big
    c.model.encoder_layers = placeholder(int)  # each of these five overrides the name
    c.model.decoder_layers = placeholder(int)
    c.model.width = placeholder(int)
    c.model.heads = placeholder(int)
    c.model.mlp_width = placeholder(int)
    c.model.share = "all"  # one table for source, target, output; decoder; none
    c.model.pre_norm = False  # norms before sublayers in place of after
    c.model.activation = "relu"  # or gelu
    c.model.positions = "fairseq"  # sinusoids; or marian, or learned
    c.model.dropout = 0.3  # after embeddings and every sublayer
    c.model.attention_dropout = 0.0  # attention weights
    c.model.activation_dropout = 0.0  # after the activation of an MLP
    c.model.layer_dropout = 0.0  # whole layers

    c.data.source = "en"
    c.data.target = "de"
    c.data.dir = ""  # of prepared corpora and files; else $RDROP_DATA_DIR
    c.data.files = ConfigDict()  # of data.name=files: a .tsv or .jsonl, or the start of
    c.data.files.train = ""  # two names, as train for train.en and train.de; also .gz
    c.data.files.validation = ""  # none: 1,000 training pairs are held out
    c.data.files.test = ""  # the same
    c.data.columns = ConfigDict()  # of tables; numbers from 0 for a tsv without header
    c.data.columns.source = "source"
    c.data.columns.target = "target"
    c.data.lowercase = False  # lower-case all text
    c.data.moses = False  # the corpus is Moses-tokenised: do so with what users give
    c.data.vocabulary = ""  # take that of this workdir in place of training one
    c.data.joint_vocabulary = True  # one for both languages
    c.data.vocab_size = 10_000  # pieces at most, of each vocabulary
    c.data.max_length = 256  # tokens of a sentence, its end counted
    c.data.overlong = "truncate"  # what is longer, and count it; or refuse
    c.data.buckets = 8  # shapes of batches, each compiled once
    c.data.rows_multiple = 8  # rows of a microbatch are a multiple; so are devices

    c.eval.batch_size = 32  # sentences that are decoded together
    c.eval.metric = "bleu"
    c.eval.bleu = "13a"  # sacreBLEU's; intl, zh, char; none, compound: tokenised BLEU
    c.eval.beam = 5
    c.eval.n_best = 1  # translations that predict returns
    c.eval.length_penalty = 1.0
    c.eval.max_length_a = 1.2  # translations end at a * source tokens + b
    c.eval.max_length_b = 10
    return c


def demo() -> ConfigDict:
    """Names of things from English to German in minutes on two cores. A toy."""
    c = nmt()
    c.total_steps = "30 epochs"
    c.batch_size = 1024
    c.rdrop.alpha = 1.0

    c.data.name = "cldr_names"
    c.data.vocab_size = 1500
    c.data.max_length = 48
    c.data.buckets = 4

    c.model.encoder_layers = 2
    c.model.decoder_layers = 2
    c.model.width = 128
    c.model.heads = 4
    c.model.mlp_width = 256
    c.model.dropout = 0.2

    c.optimizer.lr = 2e-3
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup = "10%"
    c.optimizer.b2 = 0.98
    c.eval.every = "10 epochs"
    c.eval.metric = "chrf"
    c.checkpoint.every = "10 epochs"
    return c


PRESETS = {"demo": demo}


def get_config(preset: str = "demo") -> ConfigDict:
    """The config of one preset."""
    return pick(PRESETS, preset)
