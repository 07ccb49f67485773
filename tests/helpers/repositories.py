"""Files of small datasets and models for the hub on loopback."""

import functools
import io
import json
import tempfile
from pathlib import Path

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import save

from helpers.texts import rows
from rdrop_jax.data import subwords
from rdrop_jax.data.tokenizers import Vocabulary
from rdrop_jax.models.encoder import Classifier, Encoder
from rdrop_jax.models.seq2seq import Seq2Seq
from rdrop_jax.models.sizes import Seq2SeqSize, Size
from rdrop_jax.pretrained.initialize import flatten
from rdrop_jax.tasks.seq2seq.task import init_params
from rdrop_jax.tasks.summarization import weights as bart
from rdrop_jax.tasks.summarization.task import BART
from rdrop_jax.tasks.text_classification import bert, task

FILMS = "org/films"
CARD = """---
dataset_info:
- config_name: pairs
  features:
  - name: text
    dtype: string
  - name: text_b
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': good
          '1': bad
configs:
- config_name: pairs
  data_files:
  - {split: train, path: pairs/train-*}
  - {split: validation, path: pairs/validation-*}
  - {split: test, path: pairs/test-*}
- config_name: plain
  data_files:
  - {split: train, path: plain/train.jsonl}
---
# films
"""


def film_rows(count, seed, known=True):
    found = rows(count, seed)
    for row in found:
        row["label"] = ["good", "bad"].index(row["label"]) if known else -1
    packed = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(found), packed)
    return packed.getvalue()


def films(known=True):
    return {
        "README.md": CARD,
        "pairs/train-00000.parquet": film_rows(48, 0),
        "pairs/validation-00000.parquet": film_rows(16, 1),
        "pairs/test-00000.parquet": film_rows(16, 2, known),
        "plain/train.jsonl": "".join(json.dumps(r) + "\n" for r in rows(24, 3)),
    }


def json_lines(**splits):
    """A repository with one file of JSON lines for each split."""
    return {
        f"{split}.jsonl": "".join(json.dumps(row) + "\n" for row in found)
        for split, found in splits.items()
    }


def pets(train=8, test=3, seed=0):
    """Noise with two classes in a column that has not the first name in the order."""
    rng = np.random.default_rng(seed)
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["cat", "dog"]),
            "coarse_label": datasets.ClassLabel(names=["pet"]),
        }
    )
    files = {}
    for split, count in (("train", train), ("test", test)):
        pixels = rng.integers(0, 255, (count, 5, 4, 3), np.uint8)
        found = datasets.Dataset.from_dict(
            {
                "img": [Image.fromarray(each) for each in pixels],
                "fine_label": [i % 2 for i in range(count)],
                "coarse_label": [0] * count,
            },
            features,
        )
        packed = io.BytesIO()
        found.to_parquet(packed)
        files[f"data/{split}-00000.parquet"] = packed.getvalue()
    return files


BERT = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
}


@functools.cache
def tiny_bert():
    """Files of a repository with a tiny random BERT, without head, and a tokenizer."""
    texts = [row[c] for row in rows(48) for c in ("text", "text_b")]
    tokenizer = subwords.train_wordpiece(texts, 100)
    size, rng = tokenizer.get_vocab_size(), np.random.default_rng(0)
    encoder = Encoder(
        kind="bert",
        size=Size(1, 32, 2, 32),
        vocab_size=size,
        max_positions=32,
        num_types=2,
        pad_id=0,
        norm_eps=1e-12,
        dropout=0.1,
        attention_dropout=0.1,
        dtype=jnp.dtype("float32"),
        remat=False,
        masks="hash",
    )
    module = Classifier(encoder, outputs=2)
    shapes = jax.eval_shape(lambda key: task.init(module, key), jax.random.key(0))
    ours = {
        name: rng.normal(0, 0.02, leaf.shape).astype(np.float32)
        for name, leaf in flatten(shapes).items()
    }
    arrays = bert.to_theirs(ours, "bert")
    kept = {k: np.ascontiguousarray(x) for k, x in arrays.items() if "classif" not in k}
    return {
        "config.json": json.dumps(BERT | {"vocab_size": size}),
        "model.safetensors": save(kept),
        "tokenizer.json": tokenizer.to_str(),
    }


def tiny_bart(texts):
    """Files of a repository with a tiny random BART and its tokenizer."""
    vocabulary = Vocabulary("joint", subwords.train_bytes(texts, 300).to_str())
    module = Seq2Seq(
        len(vocabulary), Seq2SeqSize(1, 1, 16, 2, 16), max_length=32, **BART
    )
    params = init_params(module, jax.random.key(0))
    with tempfile.TemporaryDirectory() as folder:
        bart.save(params, Path(folder), module, vocabulary, {})
        return {p.name: p.read_bytes() for p in Path(folder).iterdir()}
