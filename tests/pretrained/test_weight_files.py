"""Files of weights that are refused before memory is allocated, and bfloat16."""

import json
import shutil
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.tiny import TINY, VIT
from helpers.vit_files import GOOGLE, PARITY

from rdrop_jax import flags
from rdrop_jax import train as train_program
from rdrop_jax.data import tables
from rdrop_jax.errors import InputError, rust_explained
from rdrop_jax.files import lfs, lines, memory
from rdrop_jax.pretrained import weight_files
from rdrop_jax.tasks.image_classification import decode, npz

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def sparse_safetensors(path, size=2**33):
    tensor = {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}
    header = json.dumps({"x": tensor}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    return path


def sparse_npz(path, size=2**33):
    """A stored array of zeros whose file has holes."""
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % (size // 4)
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        info = zipfile.ZipInfo("x.npy")
        with archive.open(info, "w", force_zip64=True) as entry:
            entry.write(head)
            archive.fp.seek(size, 1)
            entry._file_size += size
            entry._compress_size += size
    return path


@pytest.mark.parametrize("make", [sparse_safetensors, sparse_npz])
def test_more_than_memory_is_refused_before_reading(tmp_path, monkeypatch, make):
    path = make(tmp_path / ("x.npz" if make is sparse_npz else "x.safetensors"))
    monkeypatch.setattr(memory, "free", lambda: 2**30)
    monkeypatch.setattr(np, "load", None)
    monkeypatch.setattr(weight_files, "safe_open", None)
    for use in (
        lambda: weight_files.check_source(str(path)),
        lambda: weight_files.read(path),
    ):
        with pytest.raises(InputError, match=r"at most 1024 MiB, .* got 8192 MiB"):
            use()


def test_parts_are_added_up(tmp_path, monkeypatch):
    for name in "ab":
        sparse_safetensors(tmp_path / f"{name}.safetensors", 2**20)
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(memory, "free", lambda: 3 * 2**19)
    with pytest.raises(InputError, match="expected at most 2 MiB, which are free"):
        weight_files.check_source(str(tmp_path))


def test_limits_of_memory_are_known(monkeypatch):
    there = memory.free()
    assert there is None or there > 0
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (2**60, 2**60))
    assert (memory.free() or 0) <= 2**60
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (2**20, 2**20))
    assert memory.free() == 0


def entry(path, content=b"", **changed):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for offset, value in ((6, changed.get("flags")), (8, changed.get("method"))):
        if value is not None:
            data[offset : offset + 2] = struct.pack("<H", value)
            data[central + offset + 2 : central + offset + 4] = struct.pack("<H", value)
    path.write_bytes(data)
    return path


def array(descr):
    header = {"descr": descr, "fortran_order": False, "shape": (2,)}
    head = repr(header).encode()
    size = np.lib.format.descr_to_dtype(descr).itemsize
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(2 * size)


BAD = {
    "encrypted": (lambda p: entry(p, b"x" * 50, flags=1), "encrypted"),
    "compression": (lambda p: entry(p, b"x" * 50, method=77), "not supported"),
    "no array inside": (lambda p: entry(p, b"a text"), "magic string"),
    "empty entry": (entry, "expected weights, found a truncated file"),
    "float8": (lambda p: entry(p, array("|V1")), r"x.npy: expected floats .*\|V1"),
    "fields": (
        lambda p: entry(p, array([("a", "|u1"), ("b", "|u1")])),
        "x.npy: expected floats .* got the type",
    ),
    "nested header": (
        lambda p: entry(
            p, b"\x93NUMPY\x01\x00" + struct.pack("<H", 9000) + b"(" * 9000
        ),
        "expected weights, found a truncated file",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_damaged_npz_files_are_refused(tmp_path, make, message):
    path = make(tmp_path / "x.npz")
    with pytest.raises(InputError, match=message) as error:
        weight_files.check_source(str(path))
    assert str(path) in str(error.value)
    with pytest.raises(InputError, match=message):
        weight_files.read(path)


def test_files_without_arrays_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w"):
        pass
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    for name in ("x.npz", "x.safetensors"):
        with pytest.raises(
            InputError, match=f"{name}: expected arrays, found an empty f"
        ):
            weight_files.check_source(str(tmp_path / name))


def test_bfloat16_in_an_npz(tmp_path):
    arrays = np.load(GOOGLE)
    half = {name: arrays[name].astype(ml_dtypes.bfloat16) for name in arrays.files}
    np.savez(tmp_path / "half.npz", **half)
    weight_files.check_source(str(tmp_path / "half.npz"))
    found = weight_files.read(tmp_path / "half.npz").arrays
    assert found.keys() == half.keys()
    for name, x in half.items():
        assert found[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_git_lfs_pointers_are_named(tmp_path, name):
    folder = Path(shutil.copytree(PARITY, tmp_path / "model"))
    (folder / name).write_text(POINTER)
    with pytest.raises(
        InputError, match=f"{name}: .*git-lfs pointer.* Run `git lfs pull"
    ):
        weight_files.check_source(str(folder))
    (folder / "x.npz").write_text(POINTER)
    with pytest.raises(InputError, match="got a git-lfs pointer"):
        weight_files.check_source(str(folder / "x.npz"))


def test_git_lfs_pointers_as_data_are_named(tmp_path):
    def text(path):
        return list(lines.read(path))

    def table(path):
        return list(tables.read(path))

    def image(path):
        return decode.decode(path, 3)

    for name, read in {
        "a.txt": text,
        "a.tsv": table,
        "a.parquet": table,
        "a.npz": npz.load,
        "a.png": image,
    }.items():
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(ValueError, match=r"git-lfs pointer.* Run `git lfs pull"):
            read(tmp_path / name)


def test_other_files_are_no_pointers(tmp_path):
    (tmp_path / "empty").write_text("")
    for path in (tmp_path, tmp_path / "empty", tmp_path / "nowhere", GOOGLE):
        assert not lfs.is_pointer(path)
        lfs.check_not_pointer(path)


@pytest.mark.parametrize("kind", ["deit", "distilbert", "bert", ["vit"], 3])
def test_another_family_is_one_line(tmp_path, kind):
    folder = Path(shutil.copytree(PARITY, tmp_path / "model"))
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    config = flags.load(VIT, TINY | {"init_from": str(folder)})
    with pytest.raises(
        InputError, match=r"model_type of config\.json: expected vit, got"
    ):
        train_program.check_start(config, tmp_path / "run")
    with pytest.raises(
        InputError, match="text_classification: bert, roberta, xlm"
    ) as error:
        train_program.check_start(config, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_panics_of_rust_are_errors_and_nothing_else():
    panic = type("PanicException", (BaseException,), {})
    for raised, wanted in [
        (panic("a\nb"), InputError),
        (Exception("x"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (KeyError("x"), KeyError),
    ]:
        with pytest.raises(wanted), rust_explained("file"):
            raise raised
