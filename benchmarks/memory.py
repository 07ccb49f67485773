"""python -m benchmarks.memory --config configs/vit.py:cifar100 --devices 8 --fsdp 8

Memory per device of a preset's train step, compiled at full size for simulated CPU
devices; nothing is run and no data is read. Supports presets of configs/vit.py, and of
configs/summarization.py with batches of the longest documents. Any field can be set as
for training: --config.accum_steps=2 --config.model.remat=true. Memory layouts on other
devices differ, so the temporary memory is only an estimate for them.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from rdrop_jax import config as config_lib
from rdrop_jax.cli import flags


def compile_step(config: ConfigDict, classes: int = 2) -> tuple[Any, Any]:
    """Compile the train step of a preset at full size for the available devices.

    Args:
      config: config returned by `rdrop_jax.flags.load`.
      classes: number of classes if the config leaves it to the dataset.

    Returns:
      The compiled step and its abstract state.
    """
    import jax

    from rdrop_jax.training import state as state_lib
    from rdrop_jax.training.mesh import batch_sharding, make_mesh

    resolved = config_lib.resolve(config, 1000.0).unlock()
    mesh = make_mesh(**resolved.mesh)
    describe = _texts if resolved.task == "summarization" else _images
    task, shapes = describe(resolved, classes)
    tx = state_lib.make_tx(resolved)
    abstract = state_lib.abstract_state(task, tx, resolved, mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh))
        for name, (shape, dtype) in shapes.items()
    }
    step = jax.jit(state_lib.make_step(task, tx, resolved, mesh), donate_argnums=0)
    return step.lower(abstract, batch).compile(), abstract


def _images(config: ConfigDict, classes: int) -> tuple[Any, dict[str, Any]]:
    from rdrop_jax import tasks

    config.data.num_classes = config.data.num_classes or classes
    size, rows = config.data.image_size, config.batch_size
    shape = (rows, size, size, config.data.channels)
    return tasks.build(config), {"image": (shape, "f4"), "label": ((rows,), "i4")}


def _texts(config: ConfigDict, classes: int) -> tuple[Any, dict[str, Any]]:
    from rdrop_jax.tasks.summarization import task as summarization

    data = config.data
    rows = config.batch_tokens // data.max_length
    source, target = (rows, data.max_length), (rows, data.max_target_length)
    shapes = {"src": (source, "i4"), "src_where": (source, "?")}
    shapes |= {"inputs": (target, "i4"), "labels": (target, "i4")}
    shapes |= {"where": (target, "?")}
    vocabulary = blank_vocabulary(data.vocab_size)
    return summarization.with_vocabulary(config, vocabulary), shapes


def blank_vocabulary(size: int) -> Any:
    """Make a placeholder vocabulary of the size that the config specifies."""
    from tokenizers import Tokenizer, models

    from rdrop_jax.data.tokenizers import Vocabularies, Vocabulary

    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += [f"piece {i}" for i in range(size - len(names))]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    vocabulary = Vocabulary("joint", tokenizer.to_str())
    return Vocabularies(vocabulary, vocabulary)


def main(argv: Sequence[str]) -> None:
    parser = flags.Parser(prog="benchmarks.memory", description=__doc__)
    parser.add_argument("--config", metavar="FILE[:PRESET]", required=True)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--fsdp", type=int, default=1)
    args, overrides = flags.parse(parser, argv)
    config = flags.load(args.config, {"mesh.fsdp": str(args.fsdp)} | overrides)
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    start = time.perf_counter()
    compiled, abstract = compile_step(config)
    took = time.perf_counter() - start
    found = compiled.memory_analysis()
    count = sum(x.size for x in jax.tree.leaves(abstract.params))
    print(f"{args.config}, {count / 1e6:.1f} M parameters, {args.devices} devices,")
    print(f"fsdp {args.fsdp}, {overrides or 'no overrides'}; compiled in {took:.0f} s")
    print("| per device | MiB |\n| --- | --- |")
    for name, size in (
        ("state and batch", found.argument_size_in_bytes),
        ("temporary: activations, gradients", found.temp_size_in_bytes),
        (
            "outputs that do not reuse the state's memory",
            found.output_size_in_bytes - found.alias_size_in_bytes,
        ),
    ):
        print(f"| {name} | {size / 2**20:.0f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
