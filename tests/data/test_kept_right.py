"""Inputs in common spellings that version 0.1 already read right."""

import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rdrop_jax import rdrop_loss
from rdrop_jax.core.losses import softmax_cross_entropy
from rdrop_jax.data import tables
from rdrop_jax.tasks.image_classification import decode, folder
from rdrop_jax.tasks.text_classification.texts import Columns, collect, find_classes

ROWS = [("Café", "10"), ("cafe\u0301", "9"), ("a\u2028b \u0085", "2"), ('"q", r', "1")]
JSONL = "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in ROWS)
RAW = "".join(
    json.dumps({"text": t, "label": y}, ensure_ascii=False) + "\n" for t, y in ROWS
)
TSV = "text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in ROWS)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("crlf", [False, True], ids=["lf", "crlf"])
@pytest.mark.parametrize("bom", [False, True], ids=["no bom", "bom"])
@pytest.mark.parametrize(
    ("name", "content"), [("t.jsonl", JSONL), ("t.jsonl", RAW), ("t.tsv", TSV)]
)
def test_tables_in_any_spelling_have_the_same_rows(
    tmp_path, name, content, bom, crlf, packed
):
    content = content.replace("\n", "\r\n") if crlf else content
    data = (b"\xef\xbb\xbf" if bom else b"") + content.encode()
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    found = [(row.fields["text"], row.fields["label"]) for row in tables.read(path)]
    assert found == ROWS


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["b", "a", "B"], ("B", "a", "b")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["", "a", None, "b", "a"], ("a", "b")),
    ],
)
def test_class_ids_follow_sorted_names(tmp_path, labels, classes):
    path = tmp_path / "t.jsonl"
    path.write_text(
        "".join(json.dumps({"text": "x", "label": y}) + "\n" for y in labels)
    )
    texts = collect(tables.read(path), Columns())
    assert find_classes(texts, "classes") == classes


def pixels(value, mode="RGB"):
    return Image.new(mode, (8, 8), value)


def test_class_folders_are_sorted_by_name_and_links_to_images_are_read(tmp_path):
    for name in ("10", "9", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        pixels(0).save(tmp_path / "data" / name / "a.png")
    (tmp_path / "data" / "cat" / "link.png").symlink_to(tmp_path / "data/9/a.png")
    splits, classes = folder.find(tmp_path / "data")[:2]
    assert classes == ("10", "9", "cat")
    assert len(splits["train"]) == 4


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16"])
def test_images_of_any_mode_have_the_channels_of_the_model(tmp_path, mode, channels):
    path = tmp_path / "a.png"
    image = (
        Image.fromarray(np.full((8, 8), 200 << 8, np.uint16))
        if mode == "I;16"
        else pixels(200, "L").convert(mode)
    )
    image.save(path)
    found = np.asarray(decode.decode(path, channels))
    assert found.shape == ((8, 8) if channels == 1 else (8, 8, 3))
    assert abs(int(found.flat[0]) - (255 if mode == "1" else 200)) <= 1


def test_padding_does_not_enter_label_smoothing():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    labels, keep = jnp.array([1, 2, 0]), jnp.array([True, True, False])
    options = {"alpha": 1.0, "label_smoothing": 0.1}
    found = rdrop_loss(z, labels, where=keep, **options)[0]
    assert found == pytest.approx(float(rdrop_loss(z[:, :2], labels[:2], **options)[0]))
    rows = softmax_cross_entropy(z[0], labels, label_smoothing=0.1, where=keep)
    assert rows[2] == 0
