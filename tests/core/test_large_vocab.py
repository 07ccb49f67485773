"""The loss from hidden states against the loss of the logits they make."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.chunk_sizes import set_sizes
from jax.sharding import AxisType

from rdrop_jax import LinearOutput, forward_passes, large_vocab_rdrop_loss, rdrop_loss
from rdrop_jax.core.kernels import chunking
from rdrop_jax.training.mesh import make_mesh

PASSES, BATCH, TIME, WIDTH, VOCAB = 2, 8, 5, 6, 24
ARGUMENTS = (0, 1, 2, 3, 4)  # hidden, kernel, bias, weight, alpha


def make(tied=False, vocab=VOCAB, passes=PASSES, dtype=np.float32):
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=(passes, BATCH, TIME, WIDTH)).astype(dtype)
    kernel = rng.normal(size=(vocab, WIDTH) if tied else (WIDTH, vocab)).astype(dtype)
    bias = rng.normal(size=vocab).astype(dtype)
    weight = rng.uniform(0.5, 1.5, (BATCH, TIME)).astype(dtype)
    labels = rng.integers(0, vocab, (BATCH, TIME))
    where = rng.random((BATCH, TIME)) < 0.8
    arrays = tuple(jnp.asarray(x) for x in (hidden, kernel, bias, weight))
    alpha = jnp.asarray(1.7, dtype)
    return (*arrays, alpha), jnp.asarray(labels), jnp.asarray(where)


def ours(hidden, kernel, bias, weight, alpha, *, labels, tied, **options):
    return large_vocab_rdrop_loss(
        hidden,
        kernel,
        labels,
        bias=bias,
        weight=weight,
        alpha=alpha,
        tied=tied,
        **options,
    )


def plain(hidden, kernel, bias, weight, alpha, *, labels, tied, **options):
    kernel = kernel.T if tied else kernel
    logits = jnp.einsum(
        "pbtw,wv->pbtv", hidden, kernel, preferred_element_type=jnp.float32
    )
    if bias is not None:
        logits += bias.astype(logits.dtype)[None, None, None]
    return rdrop_loss(logits, labels, weight=weight, alpha=alpha, **options)


def compare(arguments, differentiated=ARGUMENTS, rtol=1e-5, extra=None, **options):
    """Values, metrics and gradients of both."""

    def gradients(f):
        return jax.jit(
            jax.value_and_grad(
                functools.partial(f, **options), differentiated, has_aux=True
            )
        )(*arguments)

    (loss, metrics), found = gradients(functools.partial(ours, **(extra or {})))
    (wanted_loss, wanted_metrics), wanted = gradients(plain)
    np.testing.assert_allclose(loss, wanted_loss, rtol=rtol)
    for name in ("ce", "kl"):
        np.testing.assert_allclose(
            metrics[name].compute(), wanted_metrics[name].compute(), rtol=rtol
        )
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        np.testing.assert_allclose(one, other, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 7, 40])
@pytest.mark.parametrize("smoothing", ["uniform", "fairseq"])
def test_value_and_all_gradients_equal_those_of_logits(tied, chunk_size, smoothing):
    arguments, labels, where = make(tied)
    compare(
        arguments,
        labels=labels,
        where=where,
        tied=tied,
        label_smoothing=0.1,
        smoothing=smoothing,
        extra={"chunk_size": chunk_size},
    )


@pytest.mark.parametrize("tied", [False, True])
def test_kernel_gradients_in_blocks_of_words(tied, monkeypatch):
    set_sizes(monkeypatch, kernel_whole=10, kernel_block=7)  # 24 = 3 * 7 + 3
    arguments, labels, where = make(tied)
    compare(arguments, labels=labels, where=where, tied=tied, extra={"chunk_size": 9})


@pytest.mark.parametrize(("target", "rows"), [("gpu", 256), ("tpu", 86)])
def test_chunks_of_accelerators(target, rows, monkeypatch):
    """A chunk of 128,256 tokens: an inner loop on TPUs, none on GPUs."""
    sizes = chunking.SIZES[target]
    set_sizes(monkeypatch, **sizes._asdict())
    assert chunking.linear_rows(128_256) == 256
    assert chunking.softmax_rows(256, 128_256, linear=True) == rows
    if target == "tpu":  # the same loop, over few rows
        set_sizes(monkeypatch, softmax_logits=48, softmax_rows=1, linear_whole=0)
    arguments, labels, where = make()
    compare(arguments, labels=labels, where=where, tied=False, extra={"chunk_size": 7})


def test_one_pass_no_bias_no_smoothing():
    (hidden, kernel, _, weight, alpha), labels, _ = make(passes=1)
    arguments = (hidden, kernel, None, weight, alpha)
    compare(arguments, (0, 1, 3), labels=labels, tied=False)


def test_bfloat16_inputs():
    """bfloat16 has 8 bits: what is rounded on the way differs by that."""
    arguments, labels, where = make(dtype=jnp.bfloat16)
    arguments = (*arguments[:3], arguments[3].astype(jnp.float32), 1.7)
    compare(arguments, (0, 1, 2), 2e-2, labels=labels, where=where, tied=False)


def test_masked_positions_may_hold_anything():
    (hidden, *others), labels, where = make()
    garbage = jnp.where(where[None, :, :, None], hidden, jnp.nan)
    labels = jnp.where(where, labels, -7)
    run = jax.value_and_grad(
        lambda h, k, b, w, a: ours(
            h, k, b, w, a, labels=labels, where=where, tied=False
        )[0],
        (0, 1, 2),
    )
    loss, found = run(garbage, *others)
    wanted_loss, wanted = run(jnp.nan_to_num(garbage), *others)
    np.testing.assert_array_equal(loss, wanted_loss)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_label_out_of_range_gives_nan():
    arguments, labels, _ = make()
    labels = labels.at[1, 1].set(VOCAB)
    loss, _ = ours(*arguments, labels=labels, tied=False)
    assert np.isnan(loss)


def test_nothing_differentiated_nothing_made():
    """The value alone has one product per chunk, the gradient three."""
    arguments, labels, _ = make()

    def products(f):
        return len(re.findall(r"= dot_general|dot_general\[", str(jax.make_jaxpr(f)())))

    def value():
        return ours(*arguments, labels=labels, tied=False)[0]

    def gradient():
        return jax.grad(
            lambda h: ours(h, *arguments[1:], labels=labels, tied=False)[0]
        )(arguments[0])

    assert (products(value), products(gradient)) == (1, 3)


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 2, 2), (1, 1, 8), (2, 4, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_on_eight_devices(axes, tied):
    data, fsdp, tensor = axes
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor)
    arguments, labels, where = make(tied)
    compare(
        arguments,
        labels=labels,
        where=where,
        tied=tied,
        label_smoothing=0.1,
        extra={"mesh": mesh, "chunk_size": 2},
    )


def test_a_mesh_of_one_axis():
    arguments, labels, where = make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    compare(arguments, labels=labels, where=where, tied=False, extra={"mesh": mesh})


def test_no_positions():
    (_, kernel, *_), _, _ = make()

    def loss(hidden):
        return large_vocab_rdrop_loss(hidden, kernel, jnp.zeros(0, int), alpha=1.0)[0]

    found, gradient = jax.value_and_grad(loss)(jnp.zeros((2, 0, WIDTH)))
    assert (found, gradient.shape) == (0, (2, 0, WIDTH))


def collectives(mesh, inside):
    """Collectives of the compiled gradient, within the loop or outside."""
    arguments, labels, _ = make()

    def loss(h, k, b):
        return ours(h, k, b, None, 1.0, labels=labels, tied=False, mesh=mesh)[0]

    rows = jax.NamedSharding(mesh, jax.P(None, ("data", "fsdp")))
    across = jax.NamedSharding(mesh, jax.P(None, "tensor"))
    vector = jax.NamedSharding(mesh, jax.P("tensor"))
    step = jax.jit(jax.grad(loss, (0, 1, 2)), in_shardings=(rows, across, vector))
    text = step.lower(*arguments[:3]).compile().as_text()
    ops = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return [
        found[1]
        for line in text.splitlines()
        if (found := re.search(rf" ({ops})(?:-start)?\(", line))
        and ("/while/body/" in line) == inside
    ]


def test_over_data_no_device_speaks_within_the_loop():
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    assert collectives(mesh, inside=True) == []
    assert set(collectives(mesh, inside=False)) == {"all-reduce"}


def test_over_tensor_only_sums_within_the_loop():
    mesh = make_mesh(data=1, fsdp=1, tensor=8)
    assert set(collectives(mesh, inside=True)) == {"all-reduce"}


def test_scratch_is_a_small_part_of_that_of_logits():
    """2 x 2048 tokens, 32,000 words: at most 1/12 of plain JAX, at most 200 MiB."""
    hidden = jax.ShapeDtypeStruct((2, 2048, 512), jnp.float32)
    kernel = jax.ShapeDtypeStruct((512, 32_000), jnp.float32)
    labels = jax.ShapeDtypeStruct((2048,), jnp.int32)

    def formula(h, k, y):
        log_p = jax.nn.log_softmax(h @ k)
        p = jnp.exp(log_p)
        nll = -jnp.take_along_axis(log_p, y[None, :, None], -1)
        kl = jnp.sum((p[0] - p[1]) * (log_p[0] - log_p[1]), -1) / 2
        return jnp.mean(jnp.sum(nll[..., 0], 0) + kl)

    def chunked(h, k, y):
        return large_vocab_rdrop_loss(h, k, y, alpha=1.0)[0]

    def scratch(f):
        compiled = jax.jit(jax.value_and_grad(f, (0, 1))).lower(hidden, kernel, labels)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    own = scratch(chunked)
    assert own <= 200 * 2**20
    assert own <= scratch(formula) / 12


def test_linear_output_of_two_passes_keeps_one_kernel():
    kernel = jnp.ones((WIDTH, VOCAB))

    def forward(params, batch, key):
        return LinearOutput(batch + jax.random.normal(key, batch.shape), params)

    outputs = forward_passes(
        forward,
        kernel,
        jnp.ones((BATCH, WIDTH)),
        jax.random.key(0),
        out_axes=LinearOutput(0, None, None),
    )
    assert outputs.hidden.shape == (2, BATCH, WIDTH)
    assert outputs.kernel.shape == kernel.shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tied": True}, r"kernel must be \[vocab, width\]"),
        ({"labels": jnp.zeros((BATCH, TIME))}, "labels must be class ids"),
        ({"labels": jnp.zeros(BATCH, int)}, "labels must be class ids"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"bias": jnp.zeros(3)}, "bias must be"),
        ({"hidden": jnp.zeros((3, BATCH, TIME, WIDTH))}, "1 or 2 passes"),
        ({"mesh": ("data",), "labels": jnp.zeros((3, TIME), int)}, "multiple of 8"),
        (
            {"mesh": ("tensor",), "kernel": jnp.zeros((WIDTH, 20)), "bias": None},
            "the vocabulary must be a multiple of 8",
        ),
        ({"mesh": ("batch",)}, r"axes of .*: found \('batch',\)"),
        ({"mesh": ("data", AxisType.Explicit)}, "axes of type Auto"),
    ],
)
def test_what_does_not_fit_is_named(change, message, no_shape_types):
    (hidden, kernel, bias, _, _), labels, _ = make()
    given = {"hidden": hidden, "kernel": kernel, "bias": bias, "labels": labels}
    given |= change
    if "mesh" in given:
        name, *kind = given["mesh"]
        given["mesh"] = jax.make_mesh(
            (8,), (name,), axis_types=tuple(kind) or (AxisType.Auto,)
        )
        given["hidden"] = jnp.zeros((2, *given["labels"].shape, WIDTH))
    with pytest.raises(ValueError, match=message):
        large_vocab_rdrop_loss(alpha=1.0, **given)
