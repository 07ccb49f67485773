"""Free memory under limits of control groups."""

import pytest

from rdrop_jax.files import memory

MIB = 2**20


@pytest.mark.parametrize(
    ("limit", "usage", "statistics", "name"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ],
)
def test_pages_of_files_are_free(tmp_path, monkeypatch, limit, usage, statistics, name):
    monkeypatch.setattr(memory, "_ROOT", tmp_path)
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text(f"{64 * MIB}\n")
    (tmp_path / usage).write_text(f"{60 * MIB}\n")
    assert memory.free() == 4 * MIB
    (tmp_path / statistics).write_text(
        f"active_file 0\nx_{name} 1\n{name}_x 2\n{name} {50 * MIB}\n"
    )
    assert memory.free() == 54 * MIB
    (tmp_path / limit).write_text("max\n")
    assert memory.free() != 54 * MIB
