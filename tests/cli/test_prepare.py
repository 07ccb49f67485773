"""Archives to prepared datasets: whole or not at all, and nothing is trusted."""

import dataclasses
import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from helpers.pictures import cifar_archive, imagenet_archives, write_tar
from helpers.programs import run
from PIL import Image

from rdrop_jax.cli import prepare
from rdrop_jax.data import catalogue, prepared
from rdrop_jax.errors import InputError
from rdrop_jax.files import archives
from rdrop_jax.tasks.image_classification import cifar, imagenet

ROWS = {"train": 6, "test": 3}


def opened(row):
    return np.asarray(Image.open(io.BytesIO(row["image"])))


def test_cifar_keeps_every_pixel_label_and_name(tmp_path):
    path, expected, tables = cifar_archive(tmp_path, ROWS)
    folder = cifar.prepare(tmp_path / "cifar100", [path], expected)
    index = prepared.read_index(folder)
    assert index["classes"] == ["class 0", "class 1", "class 2", "class 3"]
    assert index["rows"] == ROWS
    assert len(index["sources"][path.name]["sha256"]) == 64
    for split, count in ROWS.items():
        rows = prepared.Records(folder, index, split)
        assert len(rows) == count
        for i in range(count):
            flat = tables[split][b"data"][i]
            np.testing.assert_array_equal(
                opened(rows[i]), flat.reshape(3, 32, 32).transpose(1, 2, 0)
            )
            assert rows[i]["label"] == tables[split][b"fine_labels"][i]
    assert not (tmp_path / "cifar100.partial").exists()


def test_the_published_archive_is_expected():
    source = cifar.CIFAR100.source
    assert source.md5 == "eb9058c3a382ffc7106e4002c42a8d85"
    assert cifar.CIFAR100.rows == {"train": 50_000, "test": 10_000}
    assert imagenet.IMAGENET2012.rows == {"train": 1_281_167, "test": 50_000}
    assert imagenet.IMAGENET2012.train.md5 == "1d675b47d978889d74fa0da5fadfb00e"


def test_another_archive_is_refused(tmp_path):
    path, expected, _ = cifar_archive(tmp_path, ROWS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"expected md5 {expected.source.md5}, found"):
        cifar.prepare(tmp_path / "out", [path], expected)
    assert not (tmp_path / "out").exists()
    # And by its real name through the program.
    code, _, err = run("prepare", "cifar100", "--data_dir", tmp_path, "--from", path)
    assert code == 2
    assert "expected md5 eb9058c3a382ffc7106e4002c42a8d85, found" in err


class Evil:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (Evil(), "a call of builtins.print is not admitted"),
        ({b"data": Evil()}, "a call of builtins.print is not admitted"),
        ({b"data": np.zeros((2, 3072))}, "expected dtype u1"),
        ({b"data": np.array([print])}, "not admitted|expected dtype"),
        ([1, 2], "expected a dict, found list"),
    ],
)
def test_a_pickle_runs_nothing(capsys, table, message):
    content = pickle.dumps(table, protocol=4)
    with pytest.raises(InputError, match=message):
        cifar.unpickle(content, "x")
    for cut in range(0, len(content), 7):
        with pytest.raises(InputError):
            cifar.unpickle(content[:cut], "x")
    assert capsys.readouterr().out == ""


def test_counts_and_labels_are_checked(tmp_path):
    path, expected, _ = cifar_archive(tmp_path, ROWS)
    for changed, message in (
        ({"rows": {"train": 7, "test": 3}}, r"expected data \[7, 3072\], found"),
        ({"classes": 3}, "expected 3 names of fine labels"),
    ):
        other = dataclasses.replace(expected, **changed)
        with pytest.raises(InputError, match=message):
            cifar.prepare(tmp_path / "out", [path], other)
    bad = {b"data": np.zeros((3, 3072), np.uint8), b"fine_labels": [0, 9, 1]}
    content = {"cifar-100-python/test": pickle.dumps(bad, protocol=4)}
    path, expected, _ = cifar_archive(tmp_path, ROWS, **content)
    with pytest.raises(InputError, match="labels from 0 to 3, found 9 in row 1"):
        cifar.prepare(tmp_path / "out2", [path], expected)
    assert not (tmp_path / "out2").exists()


def test_names_that_leave_an_archive_and_links_are_refused(tmp_path):
    for name in ("../up", "/etc/passwd", "a/../../up"):
        path = write_tar(tmp_path / "a.tar", {name: b"x"})
        with archives.open_tar(path) as archive, pytest.raises(InputError, match=name):
            list(archives.members(archive, "a.tar"))
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = pytest.raises(InputError, match="found a link or device 'link'")
    with archives.open_tar(tmp_path / "l.tar") as archive, found:
        list(archives.members(archive, "l.tar"))
    path = write_tar(tmp_path / "big.tar", {"big": b"x" * 100})
    with archives.open_tar(path) as archive:
        (member,) = archives.members(archive, "big.tar")
        with pytest.raises(InputError, match="at most 99 bytes, found 100"):
            archives.read(archive, member, "big.tar", 99)
    (tmp_path / "no.tar").write_bytes(b"not a tar")
    with pytest.raises(InputError, match="expected a tar archive"):
        archives.open_tar(tmp_path / "no.tar")


def test_imagenet_takes_ids_from_sorted_wordnet_names(tmp_path):
    expected, images, truth = imagenet_archives(tmp_path)
    folder = imagenet.prepare(tmp_path / "out", [tmp_path], expected, shard=4)
    index = prepared.read_index(folder)
    assert index["classes"] == ["word 0", "word 1"]
    rows = prepared.Records(folder, index, "train")
    found = [(rows[i]["label"], rows[i]["image"]) for i in range(len(rows))]
    wanted = [(i, x) for i, name in enumerate(images) for x in images[name]]
    assert found == wanted  # the JPEG files byte for byte
    assert [s["rows"] for s in index["splits"]["train"].values()] == [4, 2]
    tests = prepared.Records(folder, index, "test")
    # The archive holds the last image first; id 2 of the devkit is the first class.
    assert [tests[i]["label"] for i in range(5)] == [2 - t for t in reversed(truth)]


def test_imagenet_counts_are_checked(tmp_path):
    expected, _, _ = imagenet_archives(tmp_path)
    for rows, message in ((7, "expected 7 records, found fewer"), (5, "found more")):
        counts = {"train": rows, "test": 5}
        other = dataclasses.replace(expected, rows=counts)
        with pytest.raises(InputError, match=message):
            imagenet.prepare(tmp_path / f"out{rows}", [tmp_path], other)
        assert not (tmp_path / f"out{rows}").exists()


def test_an_interrupted_preparation_goes_on(tmp_path):
    expected, _, _ = imagenet_archives(tmp_path)
    whole = imagenet.prepare(tmp_path / "whole", [tmp_path], expected, shard=2)

    def interrupt(record):
        if record.getMessage().startswith("train: 4"):
            raise KeyboardInterrupt
        return True

    folder = tmp_path / "out"
    logging.getLogger(imagenet.__name__).addFilter(interrupt)
    with pytest.raises(KeyboardInterrupt):
        imagenet.prepare(folder, [tmp_path], expected, shard=2)
    logging.getLogger(imagenet.__name__).removeFilter(interrupt)
    assert not folder.exists()
    partial = tmp_path / "out.partial"
    first = partial / "train-00000.array_record"
    (partial / "train-00002.array_record.tmp").write_bytes(b"half a shard")
    before = first.stat().st_mtime_ns
    imagenet.prepare(folder, [tmp_path], expected, shard=2)
    assert (folder / first.name).stat().st_mtime_ns == before
    for split in ("train", "test"):
        one, other = (
            prepared.Records(place, prepared.read_index(place), split)
            for place in (whole, folder)
        )
        assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(one))]


def test_a_damaged_dataset_is_noticed(tmp_path):
    path, expected, _ = cifar_archive(tmp_path, ROWS)
    folder = cifar.prepare(tmp_path / "cifar100", [path], expected)
    shard = folder / "test-00000.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"expected {len(content)} bytes"):
        prepared.read_index(folder)
    shard.unlink()
    with pytest.raises(InputError, match="no such file"):
        prepared.read_index(folder)
    for damaged in ({}, {"splits": {"train": 3}}, {"splits": {}, "classes": []}):
        (folder / "index.json").write_text(json.dumps({"format": 1} | damaged))
        with pytest.raises(InputError, match="corrupt index"):
            prepared.read_index(folder)
    (folder / "index.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(InputError, match="expected format 1"):
        prepared.read_index(folder)


def test_bad_requests_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no such dataset\. Did you mean cifar100\?"):
        prepare.prepare("cifar10", tmp_path, [])
    with pytest.raises(
        InputError, match=r"expected cifar-100-python\.tar\.gz, found none"
    ):
        prepare.prepare("cifar100", tmp_path, [tmp_path])
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e .*\[prepare\]"):
        prepare.prepare("tfds:mnist", tmp_path, [])
    monkeypatch.delenv("RDROP_DATA_DIR", raising=False)
    with pytest.raises(InputError, match=r"--data_dir: expected a folder"):
        prepare.main(["cifar100"])
