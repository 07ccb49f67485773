"""The console script: one name for each program, started fast."""

import re
import subprocess
import sys
import time
import tomllib

import pytest
from helpers.programs import ROOT

from rdrop_jax import __version__
from rdrop_jax.cli import main as console

DOOR = 'if __name__ == "__main__":\n    process.run(main)'


def start(*argv):
    code = "from rdrop_jax.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True
    )


def test_the_script_is_installed_under_its_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"rdrop-jax": "rdrop_jax.cli.main:main"}


def test_there_is_one_program_for_each_module_that_can_be_run():
    doors = {
        re.sub("/__main__$", "", str(path.relative_to(ROOT / "rdrop_jax"))[:-3])
        for path in (ROOT / "rdrop_jax").rglob("*.py")
        if DOOR in path.read_text() and path.stem != "worker"
    }
    assert set(console.PROGRAMS) == doors


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_help_lists_the_programs(argv):
    done = start(*argv)
    assert done.returncode == 0
    for name, program in console.PROGRAMS.items():
        assert re.search(
            rf"^  {name} +{re.escape(program.summary)}$", done.stdout, re.M
        )


def test_help_and_version_load_no_library():
    code = (
        "import sys; sys.argv = ['rdrop-jax', '--help']\n"
        "from rdrop_jax.cli.main import main; main()\n"
        "print(*{'jax', 'numpy', 'ml_collections', 'argparse'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):
        clock = time.perf_counter()
        out = subprocess.check_output([sys.executable, "-c", code], text=True)
        seconds.append(time.perf_counter() - clock)
        assert out.endswith("program.\n\n")
    assert min(seconds) < 1
    assert start("--version").stdout == f"rdrop-jax {__version__}\n"


def test_an_unknown_program_is_named():
    done = start("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: program: expected one of train, evaluate,")
    assert done.stderr.endswith("got 'trian'. Did you mean train?\n")


def test_a_program_gets_the_arguments_after_its_name():
    done = start("train", "--config", "configs/vit.py", "--config.total_step=1")
    assert done.returncode == 2
    assert "--config.total_step: no such field" in done.stderr


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    from rdrop_jax.cli import flags

    monkeypatch.chdir(tmp_path)
    assert flags.find_file("configs/vit.py") == ROOT / "configs" / "vit.py"
    local = tmp_path / "configs" / "vit.py"
    local.parent.mkdir()
    local.write_text("")
    assert flags.find_file("configs/vit.py").resolve() == local
