"""A user's image folders, tables and arrays as they come."""

import io
import os
import zipfile

import numpy as np
import pytest
import scipy.sparse
from helpers.pictures import encoded, noise, write_folder
from PIL import Image, features

from rdrop_jax.data import splits
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.image_classification import decode, folder, image_files, npz
from rdrop_jax.tasks.image_classification.decode import BadImage
from rdrop_jax.tasks.image_classification.image_sets import _listing
from rdrop_jax.tasks.image_classification.predict import read_images

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
    with pytest.raises(InputError, match=f"found {name}, named like a split, and bus"):
        folder.find(tmp_path)


def test_splits_in_a_class_named_like_a_split_are_refused(tmp_path):
    images(
        tmp_path / "bus", tmp_path / "train" / "steam", tmp_path / "train" / "diesel"
    )
    with pytest.raises(InputError, match="found train, named like a split, and bus"):
        folder.find(tmp_path)


def test_two_folders_of_one_split_are_refused(tmp_path):
    write(tmp_path / "train", tmp_path / "Training")
    with pytest.raises(InputError, match="expected one table per split"):
        folder.find(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "x_test"),
        ("my-train", "my-val"),
        ("trains", "tests"),
        ("cats_train", "cats_test"),
        ("myTrain", "myDev"),
        ("train", "x_test"),
        ("train", "Tests"),
        ("train", "val", "Tests"),
        ("x_train", "x_test", "cat", "dog", "bird"),
    ],
)
def test_names_that_may_be_splits_are_refused(tmp_path, names):
    unclear = sorted(name for name in names if splits.splits_in(name))
    unclear = [name for name in unclear if splits.split_of(name) is None]
    write(*(tmp_path / "a" / name for name in names))
    with pytest.raises(InputError, match=rf"names: {', '.join(unclear)}. Rename"):
        folder.find(tmp_path / "a")
    for name in names:
        (tmp_path / f"{name}.tsv").write_text("a.png\tcat\nb.png\tdog\n")
    with pytest.raises(InputError, match=r"expected tables in .* ambiguous names"):
        folder.find(tmp_path)


def test_names_that_differ_in_the_split_alone_are_refused(tmp_path):
    images(*(tmp_path / name for name in ("xtrain", "xtest", "cat", "dog", "owl")))
    with pytest.raises(InputError, match="found ambiguous names: xtest, xtrain"):
        folder.find(tmp_path)


def test_classes_that_contain_the_word_of_a_split(tmp_path):
    names = ("bullet_train", "cat", "contest", "dog", "owl", "steam train", "test_tube")
    images(*(tmp_path / name for name in names))
    assert folder.find(tmp_path)[1] == names


def test_tables_alongside_folders_of_splits_are_not_splits(tmp_path):
    write(tmp_path / "train", tmp_path / "test")
    for name in ("train_labels.tsv", "test_labels.tsv", "x_train.csv", "x_test.csv"):
        (tmp_path / name).touch()
    assert set(folder.find(tmp_path)[0]) == {"train", "test"}


def test_files_that_are_not_read_are_counted(tmp_path):
    write(tmp_path / "train", tmp_path / "test")
    images(tmp_path / "unlabelled", tmp_path / "Tests" / "a", tmp_path / "train")
    cat = tmp_path / "train" / "cat"
    for name in ("a.heic", "b.HEIC", "Thumbs.db", ".hidden", "c"):
        (cat / name).touch()
    (cat / "gone.png").symlink_to(cat / "nowhere.png")
    (cat / "itself.png").symlink_to(cat / "itself.png")
    (cat / "linked.png").symlink_to(cat / "00000.png")
    os.mkfifo(cat / "pipe.png")
    splits, _ = folder.find(tmp_path)
    assert len(splits["train"]) == 5
    assert splits["train"].notes == (
        f"{tmp_path}: 9 files are not read: 2 .heic, 2 broken links, 1 images outside "
        "the class folders, 1 in Tests/, 1 in unlabelled/, 1 pipes, sockets or "
        "devices, 1 without an ending",
    )


def test_regular_files_are_found_without_stat(tmp_path, monkeypatch):
    write(tmp_path, rows=4)
    stat, calls = os.stat, []
    monkeypatch.setattr(os, "stat", lambda *a, **k: calls.append(a) or stat(*a, **k))
    found = list(image_files.find(tmp_path))
    monkeypatch.undo()
    assert (len(found), calls) == (4, [])


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path)
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"^data.dir: .* cannot be read: .*dog'$"):
        folder.find(tmp_path)
    with pytest.raises(InputError, match=r"^--input: .* cannot be read: .*dog'$"):
        list(read_images(str(tmp_path)))


@pytest.mark.parametrize("inner", ["data", "data/more"])
def test_the_folder_above_the_splits_is_refused(tmp_path, inner):
    write(tmp_path / inner / "train", tmp_path / inner / "test")
    above = (tmp_path / inner).parent
    with pytest.raises(InputError, match=f"Set data.dir to {tmp_path / inner}$"):
        folder.find(above)


def test_the_folder_above_the_classes_is_refused(tmp_path):
    write(tmp_path / "data")
    with pytest.raises(InputError, match=f"found data. Set data.dir to {tmp_path}/dat"):
        folder.find(tmp_path)
    assert len(folder.find(tmp_path / "data", ("cat", "dog"))[0]["train"]) == 4


def test_splits_inside_classes_are_refused(tmp_path):
    images(*(tmp_path / c / s for c in CLASSES for s in ("train", "test")))
    with pytest.raises(InputError, match=r"cat, which contains test, train. Arrange"):
        folder.find(tmp_path)


def test_every_ending_is_of_a_format_that_is_decoded(tmp_path):
    known = Image.registered_extensions()
    known |= {".dib": "BMP", ".mpo": "JPEG"}  # read by the reader of BMP, of JPEG
    assert {known[suffix] for suffix in image_files.SUFFIXES} == set(
        image_files.FORMATS
    )
    for suffix, kind in ((".jfif", "JPEG"), (".TIF", "TIFF"), (".ppm", "PPM")):
        path = tmp_path / "cat" / f"x{suffix}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(noise(1)[0], kind))
        assert decode.decode(path, 3).size == (8, 8)
        assert list(read_images(str(path))) == [path]
    assert len(list(image_files.find(tmp_path))) == 3


@pytest.mark.parametrize("modules", [{}, {"avif": ("PIL.none", None)}])
def test_a_pillow_without_avif(tmp_path, monkeypatch, modules):
    monkeypatch.setattr(features, "modules", modules)
    assert not image_files._is_built("AVIF")
    assert image_files._is_built("PNG")
    monkeypatch.delitem(Image.OPEN, "AVIF")
    formats = tuple(f for f in decode.FORMATS if f != "AVIF")
    monkeypatch.setattr(decode, "FORMATS", formats)
    with pytest.raises(BadImage, match=r"read: cannot identify image file$"):
        decode.decode(b"no image", 3)


def test_every_format_is_known_to_pillow():
    with pytest.raises(BadImage, match=r"read: cannot identify image file$"):
        decode.decode(b"no image", 3)


def test_images_of_32_bits_are_refused():
    for kind in (np.float32, np.int32):
        with pytest.raises(BadImage, match="expected 8 or 16 bits per channel, found"):
            decode.converted(Image.fromarray(np.zeros((2, 2), kind)), 1)


def test_pixels_of_every_usual_kind():
    rgb, grey = noise(1)[0], noise(1, channels=1)[0, ..., 0]
    deep = grey.astype(np.uint16) * 256 + 7
    palette = Image.fromarray(grey).convert("P")
    moving = io.BytesIO()
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    pgm = b"P5 8 8 65535\n" + deep.astype(">u2").tobytes()
    alpha = np.concatenate([rgb, noise(1, channels=1, seed=1)[0]], axis=-1)
    ink = np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], axis=-1)
    bits = grey > 127
    cases = {
        "RGB": (encoded(rgb), rgb),
        "RGBA": (encoded(alpha), rgb),
        "grey": (encoded(grey), grey),
        "16 bits": (encoded(deep), grey),
        "16 bits, TIFF": (encoded(deep, "TIFF"), grey),
        "16 bits, PGM": (pgm, grey),
        "palette": (saved(palette), grey),
        "animated": (moving.getvalue(), grey),
        "1 bit": (encoded(bits), bits * np.uint8(255)),
        "CMYK": (saved(Image.fromarray(ink, "CMYK"), "TIFF"), rgb),
    }
    for kind, (content, pixels) in cases.items():
        wanted = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
        found = np.asarray(decode.decode(content, 3))
        np.testing.assert_array_equal(found, wanted, err_msg=kind)


def saved(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def test_images_that_vanish_or_are_too_large(tmp_path, monkeypatch):
    write(tmp_path)
    splits, _ = folder.find(tmp_path)
    rows = decode.Decoded(splits["train"], channels=3, num_classes=2, skip_bad=False)
    (tmp_path / "cat" / "00000.png").unlink()
    with pytest.raises(
        InputError,
        match=r"00000.png: expected an image, found none: No such file. Set --config",
    ):
        rows[0]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(InputError, match=r"00002.png: .*64 pixels. exceeds limit"):
        rows[1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)  # Pillow warns and reads
    with pytest.warns(Image.DecompressionBombWarning):
        assert decode.decode(encoded(noise(1)[0]), 3).size == (8, 8)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(BadImage, match=r"cannot be read: .* Permission denied$"):
        decode.decode(tmp_path / "a.png", 3)


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
    (tmp_path / "dev.tsv").write_text("a.png\tcat\n")
    (tmp_path / "dev.csv").write_text("a.png,cat\n")
    with pytest.raises(
        InputError, match=r"one table per split, found .*dev.csv, .*dev"
    ):
        folder.find(tmp_path)


def test_tables_with_and_without_a_header(tmp_path):
    table = tmp_path / "labels.csv"
    for header in (b"", b"file_name,label\r\n"):
        table.write_bytes(header + b'"a, b.png","big ""cat"""\r\ncaf\xe9.png,dog\r\n')
        for root in (tmp_path, table):
            splits, classes = folder.find(root)
            assert splits["train"].paths == ("a, b.png", "caf\udce9.png")
            assert classes == ('big "cat"', "dog")
    write(tmp_path)  # folders of classes
    assert len(folder.find(tmp_path)[0]["train"]) == 4
    assert folder.find(table)[1] == ('big "cat"', "dog")
    table = table.rename(tmp_path / "labels.tsv")
    (tmp_path / "no_suffix").touch()
    for header in ("path\tlabel\n", ""):
        table.write_text(f"{header}no_suffix\tcat\na.png\tdog\n")
        splits, classes = folder.find(table)
        assert splits["train"].paths == ("no_suffix", "a.png")
        assert classes == ("cat", "dog")
    table = tmp_path / "labels.csv"
    table.write_text("id,file,label\n0,a.png,cat\n")
    with pytest.raises(InputError, match=r"csv, line 1: expected a path and a class"):
        folder.find(table)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((2, 0, 0, 3), np.uint8), np.arange(2), "expected x with pixels"),
        (noise(2), np.array([0, 2**63], np.uint64), "expected y as class ids from 0"),
        (noise(2), np.array([-1, 1]), "expected y as class ids from 0, found -1"),
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


@pytest.mark.parametrize(
    ("flag", "compression", "message"),
    [(1, 8, "is encrypted"), (0, 99, "compression method is not supported")],
)
def test_array_files_of_other_kinds_of_zip(tmp_path, flag, compression, message):
    path = tmp_path / "train.npz"
    np.savez(path, x=noise(2), y=np.arange(2))
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + at] |= flag
            content[place + at + 2] = compression
            place = content.find(signature, place + 1)
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"train.npz: .* cannot be read: .*{message}"):
        npz.load(path)


def test_sparse_arrays_are_refused(tmp_path):
    scipy.sparse.save_npz(tmp_path / "train.npz", scipy.sparse.eye(4, format="csr"))
    with pytest.raises(InputError, match=r"found a sparse matrix. Store .*toarray"):
        npz.load(tmp_path / "train.npz")


def test_class_names_of_array_files_in_their_normal_form(tmp_path):
    path = tmp_path / "train.npz"
    names = np.array(["cat ", "h\u00e4n".encode()], "S")
    for found in (names, np.array([" cat", "ha\u0308n"])):
        np.savez(path, x=noise(2), y=np.arange(2), classes=found)
        assert npz.classes(path) == ("cat", "h\u00e4n")
    np.savez(path, x=noise(2), y=np.arange(2), classes=np.array(["cat", "cat "]))
    with pytest.raises(InputError, match=r"expected distinct names, found 'cat' and"):
        npz.classes(path)


@pytest.mark.parametrize("names", [("trains", "tests"), ("x_train", "xTests")])
def test_array_files_named_in_the_plural(tmp_path, names):
    for name in names:
        np.savez(tmp_path / f"{name}.npz", x=noise(2), y=np.arange(2))
    assert set(npz.find(tmp_path)) == {"train", "test"}


def test_array_files_that_are_no_split_are_named(tmp_path):
    for name in ("train", "extra"):
        np.savez(tmp_path / f"{name}.npz", x=noise(2), y=np.arange(2))
    note = f"{tmp_path}: array files that belong to no split are not read: extra.npz"
    assert npz.notes(tmp_path) == (note,)
    assert npz.notes(tmp_path / "train.npz") == ()
