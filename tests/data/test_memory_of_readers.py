"""Peak memory of readers on files that unpack to, or claim, far more than they have."""

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from helpers import valid_files
from PIL import Image
from pyarrow import parquet

from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import weight_files
from rdrop_jax.tasks.image_classification import npz

MIB = 2**20
# Peak memory may be this multiple of a file's size, plus the constant.
MULTIPLE, CONSTANT = 64, 400 * MIB


def memory(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def peak(read, path):
    """Bytes of resident memory that a call adds at its peak; an error is returned."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = memory("VmRSS")
    error = None
    try:
        read(path)
    except InputError as found:
        error = str(found)
    return memory("VmHWM") - before, error


def gzip_bomb(path):
    line = json.dumps({"text": "a" * MIB, "label": "x"}).encode() + b"\n"
    with gzip.open(path, "wb", 9) as file:
        for _ in range(100):
            file.write(line)


def long_gzip_line(path):
    with gzip.open(path, "wb", 9) as file:
        for _ in range(66):
            file.write(b"a" * MIB)


def long_line(path):
    path.write_bytes(b"a" * (66 * MIB))


def many_lists(path):
    path.write_bytes(b'{"text": [' + b"[]," * 10**5 + b"[]]}\n")


def repeated_text(path):
    """One long text in every row, stored once."""
    rows = np.zeros(2_000, np.int32)
    texts = pyarrow.DictionaryArray.from_arrays(rows, ["a" * 100_000])
    parquet.write_table(pyarrow.table({"text": texts, "label": texts}), path)


def packed_text(path):
    text = pyarrow.array(["a" * (100 * MIB)])
    table = pyarrow.table({"text": text, "label": text})
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)


def npy_header(shape):
    header = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def claims_much(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.npy", npy_header((10**6, 1000, 1000, 3)))
        file.writestr("y.npy", npy_header((10**6,)))


def packed_zeros(path):
    np.savez_compressed(path, x=np.zeros((300, 1000, 1000), np.uint8), y=np.arange(300))


def npy_claims_much(path):
    path.write_bytes(npy_header((10**9, 3)) + bytes(100))


def safe_header(path, size, claimed):
    fields = {"dtype": "F32", "shape": [claimed // 4], "data_offsets": [0, claimed]}
    header = json.dumps({"a": fields}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)


def safe_claims_much(path):
    safe_header(path, 100, 8 * 2**30)


def safe_long_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def big_image(path):
    Image.new("1", (9000, 9000)).save(path)


def bmp_claims_much(path):
    content = bytearray(valid_files.image_file("BMP"))
    content[18:26] = struct.pack("<ii", 9000, 9000)
    path.write_bytes(content)


def many_tokens(path):
    path.write_bytes(b"\n" * 10**5 + b"a\n")


CASES = {
    "table/bomb.jsonl.gz": (gzip_bomb, valid_files.table, "unpacks to at most"),
    "table/line.tsv.gz": (long_gzip_line, valid_files.table, "at most"),
    "table/line.tsv": (long_line, valid_files.table, "in a line, found more"),
    "table/lists.jsonl": (many_lists, valid_files.table, "expected a text"),
    "repeated.parquet": (repeated_text, valid_files.table, "unpacks to at most"),
    "packed.parquet": (packed_text, valid_files.table, "unpacks to at most"),
    "claims.npz": (claims_much, npz.load, "expected the bytes of"),
    "zeros.npz": (packed_zeros, npz.load, "bytes packed into"),
    "weights.npz": (claims_much, weight_files.read, "expected the bytes of"),
    "claims.npy": (npy_claims_much, valid_files.list_of_images, "expected the bytes"),
    "claims.safetensors": (
        safe_claims_much,
        weight_files.read,
        "found a truncated file",
    ),
    "header.safetensors": (
        safe_long_header,
        weight_files.read,
        "found a truncated file",
    ),
    "claims.bmp": (bmp_claims_much, valid_files.image, "cannot be read"),
    "vocab/vocab.txt": (many_tokens, valid_files.tokenizer, "data.tokenizer"),
}


@pytest.mark.parametrize("name", CASES)
def test_peak_memory(name, tmp_path):
    write, read, message = CASES[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    write(path)
    used, error = peak(read, path)
    assert error is not None
    assert message in error
    assert used < MULTIPLE * path.stat().st_size + CONSTANT


def test_headers_of_a_large_file_are_checked_without_reading_it(tmp_path):
    path = tmp_path / "sparse.safetensors"
    safe_header(path, 2**28, 2**28)
    used, error = peak(lambda path: weight_files.check_source(str(path)), path)
    assert error is None
    assert used < 32 * MIB


def test_a_large_image_fits_the_limit_on_pixels(tmp_path):
    path = tmp_path / "large.png"
    big_image(path)
    used, error = peak(valid_files.image, path)
    assert error is None
    assert used < CONSTANT + MULTIPLE * path.stat().st_size
