"""Seeded damage to files: bytes, blocks and headers of valid files, and junk."""

import gzip
import io
import re
import zipfile

# Text that readers of JSON, tables and vocabularies have to expect anywhere.
TOKENS = [
    *(b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"18446744073709551616"),
    *(b"[]", b"{}", b'""', b'"\\ud83d"', b"\xed\xa0\xbd", b"\xff\xfe", b"\x00"),
    *(b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\t", b"\x0c", b"\xe2\x80\xa8"),
    *(b'"', b",", b":", b"}", b"]", b"\xc2\x85", b"9" * 5000, b"[" * 20000),
    *(b'{"a":' * 20000, b"../../x", b"/", b"\xcc\x81", b" " * 3000),
]
# Values that one to eight bytes of a header may take.
EXTREME = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**31, 2**63 - 1, 2**64 - 1]


def flip(rng, data):
    """Change single bytes, half the time near the start or the end."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 2, 8, 40])):
        end = rng.choice([len(data), min(len(data), 300)])
        i = rng.randrange(end)
        i = len(data) - 1 - i if rng.random() < 0.3 else i
        data[i] = rng.choice(
            [0, 255, rng.randrange(256), data[i] ^ 1 << rng.randrange(8)]
        )
    return bytes(data)


def truncate(rng, data):
    return data[: rng.randrange(len(data))]


def block(rng, data):
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice([1, 4, 32, 1000]))


def remove(rng, data):
    start, end = block(rng, data)
    return data[:start] + data[end:]


def duplicate(rng, data):
    start, end = block(rng, data)
    return data[:end] + data[start:end] * rng.choice([1, 2, 50]) + data[end:]


def splice(rng, data):
    """Move a block to another place."""
    start, end = block(rng, data)
    at = rng.randrange(len(data))
    return data[:at] + data[start:end] + data[at:]


def extreme(rng, data):
    """Write an extreme number over bytes of a header."""
    size = rng.choice([1, 2, 4, 8])
    at = rng.randrange(min(len(data), rng.choice([40, 400, 10**9])))
    value = rng.choice(EXTREME) & (2 ** (8 * size) - 1)
    number = value.to_bytes(size, rng.choice(["little", "big"]))
    return data[:at] + number + data[at + size :]


def token(rng, data):
    at = rng.randrange(len(data) + 1)
    end = at + rng.choice([0, 0, 1, 5])
    return data[:at] + rng.choice(TOKENS) + data[end:]


def value(rng, data):
    """Replace a number, a name or a word by something else."""
    found = list(re.finditer(rb'-?\d+|"[^"\n]{0,40}"|true|false|null|\w+', data))
    if not found:
        return token(rng, data)
    match = rng.choice(found)
    other = rng.choice([*TOKENS, rng.choice(found)[0]])
    return data[: match.start()] + other + data[match.end() :]


def swap_lines(rng, data):
    lines = data.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], rng.choice([lines[i], b"", lines[j]])
    return b"\n".join(lines)


def junk(rng, data):
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(2000))
    if kind == 1:
        return data[:8] + rng.randbytes(rng.randrange(2000))
    if kind == 2:
        return b"".join(rng.choices(TOKENS, k=rng.randrange(30)))
    return b""


BYTES = [flip, flip, truncate, remove, duplicate, splice, extreme, junk]
TEXT = [*BYTES, token, token, value, value, value, swap_lines]


def damaged(rng, data, *, text):
    """One to four changes."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if data:
            data = rng.choice(TEXT if text else BYTES)(rng, data)
    return data


def inside_zip(rng, data):
    """Damage the members of an archive, whose checksums then agree."""
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as source,
        zipfile.ZipFile(packed, "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if rng.random() < 0.5:
                content = damaged(rng, content, text=rng.random() < 0.5)
            target.writestr(name, content, compress_type=rng.choice([0, 8]))
    return packed.getvalue()


def inside_gzip(rng, data):
    return gzip.compress(damaged(rng, gzip.decompress(data), text=True), 1)


def inside_safetensors(rng, data):
    """Damage the header, whose length then agrees."""
    length = int.from_bytes(data[:8], "little")
    header = damaged(rng, data[8 : 8 + length], text=True)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def mutated(rng, name, data):
    """A damaged file, by the format that its name tells."""
    within = {
        ".gz": inside_gzip,
        ".npz": inside_zip,
        ".safetensors": inside_safetensors,
    }
    for ending, change in within.items():
        if name.endswith(ending) and rng.random() < 0.6:
            return change(rng, data)
    binary = (".gz", ".npz", ".npy", ".safetensors", ".parquet", ".png", ".jpg")
    images = (".webp", ".bmp", ".gif", ".tif", ".ppm", ".avif", ".bin")
    return damaged(rng, data, text=not name.endswith(binary + images))
