"""A user's image folders, tables and arrays as they come."""

import io
import zipfile

import numpy as np
import pytest
from pictures import encoded, noise, write_folder
from PIL import Image

from rdrop_jax.data import decode, folder, npz
from rdrop_jax.data.decode import BadImage
from rdrop_jax.data.image_sets import _listing
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_prediction import read_images

CLASSES = ("cat", "dog")


def write(*folders, rows=4):
    for path in folders:
        write_folder(path, noise(rows), [i % 2 for i in range(rows)], CLASSES)


def images(*folders):
    for path in folders:
        path.mkdir(parents=True, exist_ok=True)
        (path / "0.png").write_bytes(encoded(noise(1)[0]))


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("train", "Test", "test"),
        ("seg_train", "seg_test", "test"),
        ("train2017", "val2017", "validation"),
        ("trainset", "dev-set", "validation"),
        ("TRAIN", "eval", "validation"),
        ("training_images", "held_out", "test"),
    ],
)
def test_splits_in_usual_spellings(tmp_path, train, other, split):
    write(tmp_path / train, tmp_path / other)
    splits, classes = folder.find(tmp_path)
    assert classes == CLASSES
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 4, split: 4}


@pytest.mark.parametrize("name", ["train", "Val", "testing"])
def test_a_class_named_like_a_split_is_refused(tmp_path, name):
    images(tmp_path / "bus", tmp_path / "car", tmp_path / name)
    with pytest.raises(
        InputError, match=f"found {name}, named like a split, beside bus"
    ):
        folder.find(tmp_path)


def test_splits_in_a_class_named_like_a_split_are_refused(tmp_path):
    images(
        tmp_path / "bus", tmp_path / "train" / "steam", tmp_path / "train" / "diesel"
    )
    with pytest.raises(InputError, match="found train, named like a split, beside bus"):
        folder.find(tmp_path)


def test_two_folders_of_one_split_are_refused(tmp_path):
    write(tmp_path / "train", tmp_path / "Training")
    with pytest.raises(InputError, match="expected one of each split"):
        folder.find(tmp_path)


def test_files_that_are_not_read_are_counted(tmp_path):
    write(tmp_path / "train", tmp_path / "test")
    images(tmp_path / "unlabelled", tmp_path / "train")
    for name in ("a.heic", "b.HEIC", "Thumbs.db", ".hidden", "c"):
        (tmp_path / "train" / "cat" / name).touch()
    splits, _ = folder.find(tmp_path)
    (note,) = splits["train"].notes
    assert note.startswith(
        f"{tmp_path}: 5 files are not read: 2 .heic, 2 .png, 1 without an ending."
    )


def test_every_ending_is_of_a_format_that_is_decoded(tmp_path):
    known = Image.registered_extensions() | {".avif": "AVIF", ".dib": "BMP"}
    assert {known[suffix] for suffix in folder.SUFFIXES} <= set(decode.FORMATS)
    for suffix, kind in ((".jfif", "JPEG"), (".TIF", "TIFF"), (".ppm", "PPM")):
        path = tmp_path / "cat" / f"x{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(1)[0], kind))
        assert decode.decode(path, 3).size == (8, 8)
        assert list(read_images(str(path))) == [path]
    assert len(list(folder.image_files(tmp_path))) == 3


def test_images_of_32_bits_are_refused():
    with pytest.raises(BadImage, match="expected 8 or 16 bits per channel, found 32"):
        decode.converted(Image.fromarray(np.zeros((2, 2), np.float32)), 1)


def test_class_folders_that_differ_in_space_or_normal_form_are_refused(tmp_path):
    for number, (one, other) in enumerate([("pos", "pos "), ("\u00e9", "e\u0301")]):
        images(tmp_path / f"{number}" / one, tmp_path / f"{number}" / other)
        with pytest.raises(InputError, match="expected one folder for each class"):
            folder.find(tmp_path / f"{number}")


def test_a_link_to_a_parent_is_refused_and_other_links_are_counted(tmp_path):
    write(tmp_path)
    (tmp_path / "cat" / "more").symlink_to(tmp_path / "dog")
    splits, _ = folder.find(tmp_path)
    assert "1 links to folders" in splits["train"].notes[0]
    (tmp_path / "up").symlink_to(tmp_path)
    with pytest.raises(InputError, match="up, a link to a folder that contains it"):
        folder.find(tmp_path)


def test_file_names_that_are_not_utf8(tmp_path):
    write(tmp_path)
    (tmp_path / "cat" / "00000.png").rename(tmp_path / "cat" / "caf\udce9.png")
    splits, _ = folder.find(tmp_path)
    assert "4 files" in _listing(splits["train"])
    (tmp_path / "cat").rename(tmp_path / "c\udce9t")
    assert folder.find(tmp_path)[1] == ("c\ufffdt", "dog")


NAMES = ["caf\u0085e.png", "a\u2028b.png", "x\x0cy.png", "plain.png"]


def test_lists_of_images_are_split_at_newlines_alone(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(encoded(noise(1)[0]))
    rows = [f"{name}\t{i % 2} \r\n" for i, name in enumerate(NAMES)]
    (tmp_path / "labels.tsv").write_bytes(b"\xef\xbb\xbf" + "".join(rows).encode())
    splits, classes = folder.find(tmp_path)
    assert splits["train"].paths == tuple(NAMES)
    assert classes == ("0", "1")
    listed = b"\xef\xbb\xbf" + "\r\n".join(NAMES).encode()
    (tmp_path / "list.TXT").write_bytes(listed)
    found = list(read_images(str(tmp_path / "list.TXT")))
    assert found == [tmp_path / name for name in NAMES]


def test_tables_of_splits_and_their_conflicts(tmp_path):
    for name in ("Training.TSV", "dev.tsv"):
        (tmp_path / name).write_text("a.png\tcat\nb.png\tdog\n")
    splits, _ = folder.find(tmp_path)
    assert set(splits) == {"train", "validation"}
    (tmp_path / "dev.tsv").write_text("a.png\tcat\na.png\tdog\n")
    with pytest.raises(InputError, match=r"line 2: expected one label for 'a.png'"):
        folder.find(tmp_path)
    (tmp_path / "dev.tsv").rename(tmp_path / "dev.csv")
    with pytest.raises(InputError, match=r"expected .tsv files .* found .*dev.csv"):
        folder.find(tmp_path)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 0, 0, 3), np.uint8), np.arange(2), "expected x with pixels"),
        (noise(2), np.array([0, 2**63], np.uint64), "expected y as class ids from 0"),
        (noise(2), np.array([0.0, 1.0]), "expected y as 2 integers"),
        (noise(2), np.array([True, False]), "expected y as 2 integers"),
        (noise(2), np.zeros((2, 1), int), "expected y as 2 integers"),
    ],
)
def test_arrays_that_are_not_images_and_class_ids(tmp_path, x, y, message):
    np.savez(tmp_path / "train.npz", x=x, y=y)
    with pytest.raises(InputError, match=message):
        npz.load(tmp_path / "train.npz")


def test_array_files_in_usual_spellings(tmp_path):
    for name in ("X_Training", "x-dev", "mytest"):
        np.savez(tmp_path / f"{name}.npz", x=noise(2), y=np.arange(2))
    found = npz.find(tmp_path)
    assert {split: path.stem for split, path in found.items()} == {
        "train": "X_Training",
        "validation": "x-dev",
        "test": "mytest",
    }


def test_array_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "train.npz"
    header = io.BytesIO()
    kind = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1000, 1000, 3)}
    np.lib.format.write_array_header_1_0(header, kind)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", b"no array")
    with pytest.raises(InputError, match=r"train\.npz"):
        npz.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"text")
    with pytest.raises(InputError, match=r"train\.npz"):
        npz.load(path)
