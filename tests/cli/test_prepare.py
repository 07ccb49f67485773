"""Archives to prepared datasets: whole or not at all, and nothing is trusted."""

import dataclasses
import json
import logging
import tarfile

import pytest
from helpers.pictures import imagenet_archives, write_tar

from rdrop_jax.cli import prepare
from rdrop_jax.data import catalogue, prepared
from rdrop_jax.errors import InputError
from rdrop_jax.files import archives
from rdrop_jax.tasks.image_classification import imagenet


def test_the_published_archive_is_expected():
    assert imagenet.IMAGENET2012.rows == {"train": 1_281_167, "test": 50_000}
    assert imagenet.IMAGENET2012.train.md5 == "1d675b47d978889d74fa0da5fadfb00e"


def test_another_archive_is_refused(tmp_path):
    expected, _, _ = imagenet_archives(tmp_path)
    path = tmp_path / expected.train.file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"expected md5 {expected.train.md5}, found"):
        imagenet.prepare(tmp_path / "out", [tmp_path], expected)
    assert not (tmp_path / "out").exists()


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
    expected, _, _ = imagenet_archives(tmp_path)
    folder = imagenet.prepare(tmp_path / "out", [tmp_path], expected)
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
    with pytest.raises(
        InputError, match=r"no such dataset\. Did you mean imagenet2012"
    ):
        prepare.prepare("imagenet", tmp_path, [])
    with pytest.raises(InputError, match=r"expected ILSVRC2012_img_train\.tar, found"):
        prepare.prepare("imagenet2012", tmp_path, [tmp_path])
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e .*\[prepare\]"):
        prepare.prepare("tfds:mnist", tmp_path, [])
    monkeypatch.delenv("RDROP_DATA_DIR", raising=False)
    with pytest.raises(InputError, match=r"--data_dir: expected a folder"):
        prepare.main(["imagenet2012"])
