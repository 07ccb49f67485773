"""python -m rdrop_jax.export --workdir runs/vit --output exported

Writes a trained model in the format of Hugging Face's transformers, or as .npz.
"""

import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rdrop_jax import tasks
from rdrop_jax.cli import flags
from rdrop_jax.errors import InputError
from rdrop_jax.files import paths
from rdrop_jax.training import workdir as workdir_lib


def export(
    workdir: Path,
    output: Path,
    checkpoint: str = "best",
    format: str = "safetensors",
) -> int:
    """Export the parameters of one checkpoint to other libraries.

    Args:
      workdir: folder of the run.
      output: new or empty folder.
      checkpoint: "best", "last" or a step.
      format: "safetensors", with config.json and preprocessor_config.json, or "npz".

    Returns:
      The step of the checkpoint.

    Raises:
      InputError: no such run or checkpoint, a format that the run's task does not
        support, or an output that cannot be written.
    """
    check_output(workdir, output)
    from rdrop_jax.cli.run import open_run  # jax starts here

    run = open_run(workdir, checkpoint)
    family = run.task.pretrained
    if family is None:
        raise InputError(
            f"--workdir: expected a run of one of the models "
            f"{', '.join(tasks.families()[run.config.task])}, found one of "
            f"{run.config.model.name}, for which no other library's form is known"
        )
    if format not in family.formats:
        known = ", ".join(family.formats)
        raise InputError(f"--format: expected one of {known}, found {format!r}")
    try:
        family.save(run.params, output, format)
    except OSError as error:
        raise _unwritable(output, error) from error
    return run.step


def check_output(workdir: Path, output: Path) -> None:
    """Check workdir and output before jax starts.

    Raises:
      InputError: no run in the workdir, or an output that is in use or not writable.
    """
    paths.local("--output", output)
    config = workdir_lib.read(workdir)
    if config.task not in (exported := tasks.families()):
        raise InputError(
            f"--workdir: expected a run of {', '.join(exported)}, found one of "
            f"{config.task}, for which no other library's form is known"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        if found := sorted(path.name for path in output.iterdir()):
            raise InputError(
                f"--output: expected a new or empty folder, found {output} with "
                f"{', '.join(found[:5])}"
            )
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: OSError) -> InputError:
    return InputError(f"--output: cannot write in {output}: {error.strerror or error}")


def main(argv: Sequence[str]) -> None:
    """Parse the command line and export."""
    parser = flags.Parser(prog="rdrop_jax.export", description=__doc__)
    parser.add_argument("--workdir", type=flags.path, required=True)
    parser.add_argument("--output", type=flags.path, required=True, help="new folder")
    parser.add_argument(
        "--checkpoint", default="best", metavar="best|last|STEP", help="default: best"
    )
    parser.add_argument(
        "--format", default="safetensors", help="safetensors (default) or npz"
    )
    args = flags.parse_plain(parser, argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # undo JAX's handler
    step = export(args.workdir, args.output, args.checkpoint, args.format)
    print(f"step {step}: {args.format} in {args.output}")
