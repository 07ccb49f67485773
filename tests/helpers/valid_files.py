"""Small valid files of every format that is read, and the functions that read them."""

import contextlib
import gzip
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow
from PIL import Image
from pyarrow import parquet
from safetensors.numpy import save

from helpers import tiny
from rdrop_jax import config
from rdrop_jax.compare import comparison as comparison_lib
from rdrop_jax.compare import results
from rdrop_jax.compare.plan import Setting, Trial
from rdrop_jax.data import (
    catalogue,
    prepared,
    subwords,
    tables,
    tokenizer_files,
    tokenizers,
)
from rdrop_jax.errors import InputError
from rdrop_jax.files import checksums as checksums_lib
from rdrop_jax.files import disk
from rdrop_jax.pretrained import head_classes, weight_files
from rdrop_jax.tasks.image_classification import folder, npz
from rdrop_jax.tasks.image_classification.decode import decode
from rdrop_jax.tasks.image_classification.predict import read_images
from rdrop_jax.tasks.language_modeling import token_files, vocabularies
from rdrop_jax.tasks.seq2seq import parallel
from rdrop_jax.tasks.text_classification import texts, words
from rdrop_jax.training import workdir

TEXT = "Grüße, Welt 12\nthe cat sat\n猫 on a mat \U0001f600\nfour\n" * 3
ROWS = [
    {"text": f"film {i} was é", "label": ["good", "bad"][i % 2], "n": i}
    for i in range(12)
]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "##s", "was", "1", "é"]
RNG = np.random.default_rng(0)
TRIAL = Trial(Setting("plain", 0, {}, {}), 0, final=True)


def drain(found):
    for _ in found:
        pass


def table(path):
    """Rows as texts with labels of each specification."""
    found = texts.collect(tables.read(path), texts.Columns())
    for labels in texts.LABELS:
        if labels == "words":
            continue
        names = () if labels == "numbers" else texts.find_classes(found, labels)
        with contextlib.suppress(InputError):  # names are no numbers
            texts.encode_labels(found, labels, names)


def conll(path):
    """Sentences whose words have labels."""
    columns = texts.Columns("0", label="1", words=True)
    found = texts.collect(words.read_conll(path, "0", "1"), columns)
    texts.encode_labels(found, "words", texts.find_classes(found, "words"))


def bare_table(path):
    drain(tables.read(path, header=False))
    parallel.read((path,), ("0", "1"))


def pairs(path):
    parallel.read((path, path))


def image_list(path):
    folder.find(path)


def list_of_images(path):
    for image in read_images(str(path)):
        if isinstance(image, Path):
            decode(image, 3)


def image(path):
    for channels in (1, 3):
        decode(path, channels)
    decode(path.read_bytes(), 3)


def image_arrays(path):
    npz.load(path)
    npz.classes(path)


def weights(path):
    weight_files.check_source(str(path))
    weight_files.read(path)


def weight_folder(path):
    weights(path.parent)
    head_classes.names(weight_files.read_config(path.parent), str(path))


def tokenizer(path):
    """A folder, and a file in it that can be read without the folder."""
    alone = [path] if path.name == "tokenizer.json" else []
    for source in (path.parent, *alone):
        tokenizer_files.load(source).encode("A film of é 猫")


def vocabulary(path):
    found = vocabularies.parse(path.read_text(errors="surrogateescape"))
    found.decode(*found.encode(["the cat"]))


def word_list(path):
    found = vocabularies.read(path)
    found.decode(*found.encode(["the cat <unk>"]))


def run_vocabularies(path):
    found = tokenizers.load(path.parent.parent)
    found.source.decode(*found.source.encode(["the cat"]))


def records(path):
    disk.read_records(path)


def run_config(path):
    config.flatten(workdir.read(path.parent))


def checksums(path):
    checksums_lib.problem(path.parent)


def dataset_info(path):
    found = catalogue.find(path.parent, ".")
    catalogue.splits(found)
    catalogue.classes(found)


def comparison(path):
    comparison_lib.read_comparison(path)


def comparison_run(path):
    run = results.read_run(TRIAL, path.parents[3])
    _ = run.step_seconds


def encoded(content):
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def image_file(kind, mode="RGB", **options):
    shape = (9, 7, {"L": 1, "RGB": 3, "RGBA": 4, "P": 1}[mode])
    pixels = RNG.integers(0, 256, shape).astype(np.uint8).squeeze()
    packed = io.BytesIO()
    Image.fromarray(pixels, None if mode != "P" else "L").save(packed, kind, **options)
    return packed.getvalue()


def parquet_file(**options):
    packed = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), packed, **options)
    return packed.getvalue()


def arrays(**found):
    packed = io.BytesIO()
    np.savez(packed, **found)
    return packed.getvalue()


def array(found):
    packed = io.BytesIO()
    np.save(packed, found)
    return packed.getvalue()


def digest(content):
    return hashlib.sha256(content).hexdigest()


def tokenizer_file(root):
    """A WordPiece tokenizer.json made of a vocab.txt."""
    (root / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    return tokenizer_files.load(root).to_str().encode()


def contents(root):
    """Path below a folder to the reader and the bytes of a valid file.

    Files under one folder belong together.
    """
    tsv = "text\tlabel\n" + "".join(f"{r['text']}\t{r['label']}\n" for r in ROWS)
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    wordpiece = tokenizer_file(root)
    bpe = subwords.train_bytes(TEXT.split("\n"), 280).to_str()
    byte_pairs = json.loads(bpe)["model"]
    joint = tokenizers.train("joint", TEXT.split("\n"), 60).text.encode()
    floats = {"a": RNG.normal(size=(3, 2)).astype(np.float32), "b": np.ones(4)}
    safe = save(floats)
    pictures = {"x": np.zeros((4, 5, 5, 3), np.uint8), "y": np.arange(4)}
    names = {"classes": np.array(["a", "b", "c", "d"])}
    words = vocabularies.learn("words", TEXT.split("\n"), 0, 1).dump().encode()
    record = {"step": 1, "kind": "train", "steps_per_second": 2.0}
    metrics = "".join(json.dumps(record | {"step": i}) + "\n" for i in range(4))
    run = "comparison/final/plain-0/seed0"
    labels = "".join(f"i{i}.png\tc{i % 2}\n" for i in range(6)).encode()
    bert = {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "x": [1]}
    shard = {"train": {"train.array_record": {"rows": 1, "bytes": 3}}}
    corpus = {"tokens": 2, "words": 2, "characters": 4}
    found = {
        "text/lines.txt": (pairs, TEXT.encode()),
        "text/lines.txt.gz": (pairs, gzip.compress(TEXT.encode())),
        "text/inputs.txt": (lambda p: drain(tables.inputs(str(p))), jsonl.encode()),
        "table/rows.tsv": (table, tsv.encode()),
        "table/words.conll": (
            conll,
            b"-DOCSTART- O\n\nAda B-PER\nsleeps O\n\nBonn B-LOC\n",
        ),
        "table/bare.tsv": (bare_table, tsv.encode()),
        "table/rows.tsv.gz": (table, gzip.compress(tsv.encode())),
        "table/rows.jsonl": (table, jsonl.encode()),
        "table/rows.jsonl.gz": (table, gzip.compress(jsonl.encode())),
        "parquet/plain.parquet": (
            table,
            parquet_file(compression="none", use_dictionary=False),
        ),
        "parquet/packed.parquet": (table, parquet_file(compression="gzip")),
        "parquet/snappy.parquet": (table, parquet_file()),
        "list/labels.tsv": (image_list, labels),
        "list/images.txt": (list_of_images, b"a.png\nb.jpg\n"),
        "list/images.jsonl": (list_of_images, b"[[1, 2], [3, 4]]\n" * 3),
        "list/image.npy": (list_of_images, array(np.zeros((2, 4, 4, 3), np.uint8))),
        "images/a.jpg": (image, image_file("JPEG")),
        "images/a.png": (image, image_file("PNG", "RGBA")),
        "images/palette.png": (image, image_file("PNG", "L")),
        "images/a.webp": (image, image_file("WEBP")),
        "images/a.bmp": (image, image_file("BMP")),
        "images/a.gif": (image, image_file("GIF")),
        "images/a.tif": (image, image_file("TIFF", compression="tiff_lzw")),
        "images/plain.tif": (image, image_file("TIFF")),
        "images/a.ppm": (image, image_file("PPM")),
        "images/a.avif": (image, image_file("AVIF")),
        "npz/images.npz": (image_arrays, arrays(**pictures, **names)),
        "weights/single.npz": (weights, arrays(**floats)),
        "weights/single.safetensors": (weights, safe),
        "folder/model.safetensors": (weight_folder, safe),
        "folder/config.json": (weight_folder, encoded(bert)),
        "parts/config.json": (weight_folder, encoded(bert)),
        "parts/part.safetensors": (weight_folder, safe),
        "parts/model.safetensors.index.json": (
            weight_folder,
            encoded({"weight_map": dict.fromkeys(floats, "part.safetensors")}),
        ),
        "bert/tokenizer.json": (tokenizer, wordpiece),
        "bart/tokenizer.json": (tokenizer, bpe.encode()),
        "wordpiece/vocab.txt": (tokenizer, "\n".join(WORDS).encode()),
        "wordpiece/tokenizer_config.json": (
            tokenizer,
            encoded(
                {
                    "do_lower_case": False,
                    "unk_token": "[UNK]",
                    "added_tokens_decoder": {"9": {"content": "é", "special": False}},
                }
            ),
        ),
        "wordpiece/added_tokens.json": (tokenizer, encoded({"<new>": len(WORDS)})),
        "bytes/vocab.json": (tokenizer, encoded(byte_pairs["vocab"])),
        "bytes/merges.txt": (
            tokenizer,
            "".join(" ".join(pair) + "\n" for pair in byte_pairs["merges"]).encode(),
        ),
        "vocabulary/words.json": (vocabulary, words),
        "vocabulary/pieces.json": (
            vocabulary,
            encoded({"kind": "bpe", "tokenizer": joint.decode()}),
        ),
        "vocabulary/words.txt": (word_list, b"<unk>\nthe\ncat\n<eos>\n"),
        "run/vocabulary/joint.json": (run_vocabularies, joint),
        "run/vocabulary/index.json": (
            run_vocabularies,
            encoded({"format": 1, "files": {"joint.json": {"sha256": digest(joint)}}}),
        ),
        "run/config.json": (
            run_config,
            encoded(tiny.config().to_dict()),
        ),
        "run/metrics.jsonl": (records, metrics.encode()),
        "run/result.json": (disk.read_json, encoded({"step": 1, "test": {"acc": 1.0}})),
        "step/checksums.json": (
            checksums,
            encoded({"state": {"bytes": 3, "sha256": digest(b"abc")}}),
        ),
        "comparison/comparison.json": (
            comparison,
            encoded({n: {} for n in ("options", "base", "pins", "probe", "versions")}),
        ),
        f"{run}/result.json": (comparison_run, encoded({"step": 1})),
        f"{run}/diagnostics.json": (comparison_run, encoded({"kl": 1.0})),
        f"{run}/metrics.jsonl": (comparison_run, metrics.encode()),
        f"{run}/test_examples.npz": (comparison_run, arrays(acc=np.ones(3))),
        "tfds/dataset_info.json": (
            dataset_info,
            encoded({"fileFormat": "array_record", "splits": [{"name": "train"}]}),
        ),
        "tfds/label.labels.txt": (dataset_info, "cat\ndög\n".encode()),
        "prepared/index.json": (
            lambda p: prepared.read_index(p.parent),
            encoded(
                {
                    "format": 1,
                    "classes": ["a", "b"],
                    "features": prepared.IMAGE_FEATURES,
                    "sources": {"a.tar": {"sha256": "0"}},
                    "splits": shard,
                }
            ),
        ),
        "corpus/vocabulary.json": (lambda p: token_files.load(p.parent), words),
        "corpus/index.json": (
            lambda p: token_files.load(p.parent),
            encoded(
                {
                    "format": 1,
                    "sha256": {"vocabulary": digest(words)},
                    "splits": {"train": corpus},
                }
            ),
        ),
        "corpus/train.txt": (lambda p: token_files.load(p.parent), b"a\nb\n"),
    }
    (root / "vocab.txt").unlink()
    unread = {
        **{f"list/i{i}.png": found["images/a.png"][1] for i in range(6)},
        "list/a.png": found["images/a.png"][1],
        "list/b.jpg": found["images/a.jpg"][1],
        "step/state": b"abc",
        "prepared/train.array_record": b"abc",
        "corpus/train.bin": bytes(8),
    }
    for name, content in ({n: c for n, (_, c) in found.items()} | unread).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return found
