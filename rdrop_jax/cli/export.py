"""python -m rdrop_jax.export --workdir runs/vit --output exported [--push hf:ORG/NAME]

Writes a trained model in the format of Hugging Face's transformers, or as .npz, with a
model card, and uploads it to the Hugging Face Hub.
"""

import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rdrop_jax import extras, tasks
from rdrop_jax.cli import flags
from rdrop_jax.errors import InputError
from rdrop_jax.files import hub, paths
from rdrop_jax.training import workdir as workdir_lib


def export(
    workdir: str | Path,
    output: str | Path,
    checkpoint: str = "best",
    format: str = "safetensors",
    *,
    license: str = "",
    push: str = "",
) -> int:
    """Export the parameters of one checkpoint to other libraries.

    Args:
      workdir: folder of the run.
      output: new or empty folder.
      checkpoint: "best", "last" or a step.
      format: "safetensors", with config.json and preprocessor_config.json, or "npz".
      license: identifier of a license for the model card, such as "apache-2.0".
      push: ``hf:ORG/NAME``, a repository of the Hub to upload the folder to; created
        if absent. "" uploads nothing.

    Returns:
      The step of the checkpoint.

    Raises:
      InputError: no such run or checkpoint, a format that the run's task does not
        support, an output that cannot be written, or a repository that cannot be
        written.
    """
    workdir, output = Path(workdir), Path(output)
    check_output(workdir, output)
    if push:
        check_push(push)
    # jax starts here
    from rdrop_jax.cli.model_card import model_card
    from rdrop_jax.cli.run import open_run
    from rdrop_jax.files.disk import replaced

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
    card = model_card(run.config, workdir, run.step, format, license)
    try:
        family.save(run.params, output, format)
        with replaced(output / "README.md", "w") as file:
            file.write(card)
    except OSError as error:
        raise _unwritable(output, error) from error
    if push:
        _upload(output, push, run.step)
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


def check_push(push: str) -> None:
    """Check a repository's name, the client and the token before jax starts.

    Raises:
      InputError: not ``hf:ORG/NAME``, or no token.
      ModuleNotFoundError: with the command that installs the client.
    """
    name = hub.parse("--push", push)
    if not push.startswith(hub.PREFIX) or "/" not in name.repo or name.revision:
        raise InputError(f"--push: expected hf:ORG/NAME, got {push!r}")
    with extras.explained(__name__, "hub"):
        from huggingface_hub import constants, get_token
    if constants.is_offline_mode():
        raise InputError(
            "--push: expected access to the Hub, got HF_HUB_OFFLINE=1. Unset it, or "
            "export without --push"
        )
    if get_token() is None:
        raise InputError(
            "--push: expected a token with write access, got none. Run `hf auth "
            "login`, or set HF_TOKEN"
        )


def _upload(output: Path, push: str, step: int) -> None:
    """Create the repository if it is absent, and upload the folder as one commit."""
    from huggingface_hub import HfApi, constants, errors

    repo = hub.parse("--push", push).repo
    later = f"{output} is complete: run `hf upload {repo} {output}` afterwards"
    try:
        HfApi().create_repo(repo, exist_ok=True)
        HfApi().upload_folder(
            repo_id=repo,
            folder_path=output,
            commit_message=f"Upload step {step} of a run of rdrop_jax",
        )
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "Start again later"
        if status in (401, 403):
            remedy = f"Set HF_TOKEN to a token with write access to {repo}"
        raise InputError(
            f"--push: {push}: the Hub refused the upload (HTTP {status}). {remedy}. "
            f"{later}"
        ) from error
    except ValueError as error:  # the Hub's list of licenses
        raise InputError(
            f"--push: {push}: the Hub refused README.md: {' '.join(str(error).split())}"
        ) from error
    except (errors.HTTPError, OSError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"--push: {push}: {constants.ENDPOINT} cannot be reached or broke off "
            f"({reason:.120}). Check the network. {later}"
        ) from error


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
    parser.add_argument(
        "--license", default="", metavar="ID", help="for the model card: apache-2.0"
    )
    parser.add_argument(
        "--push",
        default="",
        metavar="hf:ORG/NAME",
        help="upload the folder to this repository of the Hugging Face Hub",
    )
    args = flags.parse_plain(parser, argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # undo JAX's handler
    step = export(
        args.workdir,
        args.output,
        args.checkpoint,
        args.format,
        license=args.license,
        push=args.push,
    )
    print(f"step {step}: {args.format} in {args.output}")
    if args.push:
        print(f"uploaded to {args.push}")
