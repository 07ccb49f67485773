"""The pages that convert from other codes: every block and every table row is run.

Each old code is written down once more below, in plain float64 numpy and in its own
layout, mask polarity and reductions. Nothing of the library is used for that.
"""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rdrop_jax import kl_divergence, rdrop_loss, softmax_cross_entropy, symmetric_kl

DOCS = Path(__file__).parents[2] / "docs"
B, T, C, PAD, ALPHA = 5, 3, 7, 1, 1.3
RNG = np.random.default_rng(0)
KEEP = {"rows": np.ones(B, bool), "tokens": RNG.random((B, T)) < 0.6}
KEEP["full"] = np.ones((B, T), bool)
Y = {kind: RNG.integers(2, C, keep.shape) for kind, keep in KEEP.items()}  # never PAD


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def nll(z, y):
    return -np.take_along_axis(log_softmax(z), np.maximum(y, 0)[..., None], -1)[..., 0]


def kls(a, b):
    """torch's kl_div(log a, b) = KL(b || a) and its reverse, one number per class."""
    log_p, log_q = log_softmax(a), log_softmax(b)
    return np.exp(log_q) * (log_q - log_p) + np.exp(log_p) * (log_p - log_q)


def fairseq(net_output, target, pad, alpha=5.0, smoothing="uniform", **_):
    twice, eps = np.concatenate([target, target]), 0.1
    each = eps / C if smoothing == "uniform" else eps / (C - 1)
    rest = 1 - eps if smoothing == "uniform" else 1 - eps - each
    ce = rest * nll(net_output, twice) - each * log_softmax(net_output).sum(-1)
    kl = np.where((target == pad)[..., None], 0.0, kls(*np.split(net_output, 2)))
    return (ce[twice != pad].sum() + alpha * kl.sum() / 2) / (target != pad).sum()


def readme(logits1, logits2, labels, pad_mask, alpha=ALPHA, reduce=np.mean, **_):
    one, two = (reduce(nll(z, labels)[~pad_mask[..., 0]]) for z in (logits1, logits2))
    kl = np.where(pad_mask, 0.0, kls(logits1, logits2)).sum() / 2
    return 0.5 * (one + two) + alpha * kl


def paddle_kl(logits1, logits2, keep_mask, reduce="none", **_):
    loss = kls(logits1, logits2)
    if reduce == "none":
        return loss[np.broadcast_to(keep_mask, loss.shape)].sum() / 2
    divisor = {"sum": 1, "mean": loss.size, "batchmean": len(loss)}
    return loss.sum() / divisor[reduce] / 2  # from a scalar no mask can select


def paddle(logits1, logits2, labels, keep_mask, alpha=ALPHA, reduce="none", **_):
    ce = sum(nll(z, labels)[keep_mask[..., 0]].mean() for z in (logits1, logits2)) / 2
    return ce + alpha * paddle_kl(logits1, logits2, keep_mask, reduce)


def bojone(y_pred, y_true, y_mask, alpha=4.0, **_):
    """As csl.py; the plain means of the classifiers where y_mask is all 1."""
    ce = (nll(y_pred, y_true) * y_mask).sum() / y_mask.sum()
    kl = (kls(y_pred[::2], y_pred[1::2]).sum(-1) * y_mask[::2]).sum()
    return ce + kl / y_mask[::2].sum() / 4 * alpha


def bojone_unlabelled(y_pred, **_):
    return kls(y_pred[::2], y_pred[1::2]).sum(-1).mean()


def hf(logits1, logits2, labels, alpha=0.5, half=0.5, **_):
    one, two = (nll(z, labels)[labels != -100].mean() for z in (logits1, logits2))
    return one + two + alpha * half * kls(logits1, logits2)[labels != -100].sum()


def hf_roberta(logits1, logits2, labels, alpha=0.7, **_):
    return 0.5 * nll(logits1, labels).mean() + alpha * kls(logits1, logits2).sum() / 2


def paper(logits, labels, alpha, **_):
    kl = kls(*logits).sum(-1) / 2
    return (nll(logits[0], labels) + nll(logits[1], labels) + alpha * kl).mean()


def bert4torch(logits, labels, alpha, **_):
    ce = nll(np.concatenate(logits), np.concatenate([labels, labels]))
    return ce.mean() + kls(*logits).mean() / 4 * alpha  # over classes too


def given(z, kind):
    """The inputs of all old codes, each in its own form, from logits [2, ..., C]."""
    keep, y = KEEP[kind], Y[kind]
    inputs = {"logits": z, "logits1": z[0], "logits2": z[1]}
    inputs |= {"pad_mask": ~keep[..., None], "keep_mask": keep[..., None]}
    inputs |= {"labels": np.where(keep, y, -100), "target": np.where(keep, y, PAD)}
    y_pred = jnp.stack([z[0], z[1]], 1).reshape(2 * B, *z.shape[2:])
    inputs |= {"net_output": jnp.concatenate([z[0], z[1]]), "y_pred": y_pred}
    inputs |= {"y_true": np.repeat(y, 2, 0), "y_mask": np.repeat(keep * 1.0, 2, 0)}
    return {name: jnp.asarray(x) for name, x in inputs.items()} | {"pad": PAD}


def check(ours, old, kind):
    """Value, and slope in random directions, of ours(inputs) against old(**inputs)."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2, *KEEP[kind].shape, C))

    def then(z):
        return old(**{k: np.asarray(x) for k, x in given(jnp.asarray(z), kind).items()})

    gradient = jax.jit(jax.value_and_grad(lambda z: ours(given(z, kind))))
    value, grad = gradient(jnp.asarray(z))
    np.testing.assert_allclose(value, then(z), rtol=1e-9)
    for _ in range(2):
        v = 1e-5 * rng.normal(size=z.shape)
        slope = (then(z + v) - then(z - v)) / 2
        np.testing.assert_allclose(np.vdot(grad, v), slope, rtol=1e-5, atol=1e-11)


def blocks(page):
    text = (DOCS / page).read_text()
    every = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    run = re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)```", text, re.DOTALL)
    assert [code for _, code in run] == [code for code in every if "rdrop_jax" in code]
    return dict(run)


def table(page):
    """The page's table of alphas, as {first cell: {column: cell}}."""
    parts = (DOCS / page).read_text().split("\n\n")
    (part,) = (p for p in parts if p.startswith("|") and "alpha here" in p)
    names, _, *rows = (
        [c.strip() for c in x[1:-1].split("|")] for x in part.splitlines()
    )
    return {row[0]: dict(zip(names, row, strict=True)) for row in rows}


def spans(cell):
    return re.findall("`(.*?)`", cell)


def converted(row, inputs, kind, alpha, how):
    """factor * rdrop_loss(...) as a row of either table says."""
    names = {"alpha": alpha, "B": B, "C": C, "N": KEEP[kind].sum().item()}
    names |= {"jnp": jnp, **inputs}
    alpha, factor = (eval(*spans(row[x]), names) for x in ("alpha here", "factor"))
    logits, labels, where = (eval(x, names) for x in how)
    options = eval(f"dict({''.join(spans(row['other arguments']))})")
    return factor * rdrop_loss(logits, labels, alpha=alpha, where=where, **options)[0]


# Old code and kind of batch; for published codes also the alpha that ships.
summed = partial(readme, reduce=np.sum)
upstream = partial(fairseq, smoothing="fairseq")
no_half = partial(hf, half=1.0)  # ViT, and RoBERTa for tokens
BLOCKS = {f.__name__: (f, "tokens") for f in (fairseq, readme, paddle, paddle_kl)}
BLOCKS |= {f.__name__: (f, "rows") for f in (bojone, bojone_unlabelled, hf_roberta)}
BLOCKS |= {"trainer": (readme, "tokens"), "bojone_sequences": (bojone, "tokens")}
SIDE_BY_SIDE = {
    'PaddleNLP `RDropLoss("none")`': (paddle, "tokens"),
    'PaddleNLP `RDropLoss("sum")`': (partial(paddle, reduce="sum"), "full"),
    'PaddleNLP `RDropLoss("batchmean")`': (partial(paddle, reduce="batchmean"), "full"),
    'PaddleNLP `RDropLoss("mean")`': (partial(paddle, reduce="mean"), "full"),
    "`--reg-alpha` (dropreg/R-Drop)": (fairseq, "tokens"),
    "`--rdrop-alpha` (fairseq)": (upstream, "tokens"),
    "README, `compute_kl_loss`": (readme, "tokens"),
    "Trainer subclass": (readme, "tokens"),
    "bojone/r-drop, classes": (bojone, "rows"),
    "bojone/r-drop, sequences": (bojone, "tokens"),
}
PUBLISHED = {
    "paper, Eq. 2-4": (paper, "rows", "per task"),
    "official README, mean CE": (readme, "tokens", "not given"),
    "official README, summed CE": (summed, "tokens", "not given"),
    "official NMT (fairseq)": (fairseq, "tokens", "5"),
    "official BART (fairseq)": (fairseq, "tokens", "0.7"),
    "fairseq upstream criterion": (upstream, "tokens", "0"),
    "official HF BERT": (hf, "rows", "0.5"),
    "official HF RoBERTa": (hf_roberta, "rows", "0.7"),
    "official HF RoBERTa, tokens": (no_half, "tokens", "0.05"),
    "official fairseq RoBERTa": (paper, "rows", "1"),
    "official ViT": (no_half, "rows", "0.3"),
    "bojone/r-drop (Keras)": (bojone, "rows", "4"),
    "bert4torch": (bert4torch, "rows", "4"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name):
    code = (blocks("migrating.md") | blocks("method.md"))[name]

    def ours(inputs):
        names = {"alpha": ALPHA, **inputs}
        exec(code, names)
        return names["kl" if name == "paddle_kl" else "loss"]

    check(ours, *BLOCKS[name])


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_row_side_by_side(name):
    (old, kind), row = SIDE_BY_SIDE[name], table("migrating.md")[name]
    how = (*spans(row["logits, labels"]), *spans(row["where"]))
    ours = partial(converted, row, kind=kind, alpha=ALPHA, how=how)
    check(ours, partial(old, alpha=ALPHA), kind)


@pytest.mark.parametrize("name", PUBLISHED)
def test_row_of_the_conversion_table(name):
    (old, kind, shipped), row = PUBLISHED[name], table("method.md")[name]
    parts = spans(row["CE part"]) + spans(row["KL part"])
    reductions = ["sum" if "sum(" in part else "mean" for part in parts]
    assert row["reduction CE / KL"] == " / ".join(reductions)
    assert row["shipped alpha"] == shipped

    def spelled_out(inputs):
        a, b, y = inputs["logits1"], inputs["logits2"], jnp.asarray(Y[kind])
        options = eval(f"dict({''.join(spans(row['other arguments']))})")
        ce = partial(softmax_cross_entropy, labels=y, **options)
        names = {"CE1": ce(a), "CE2": ce(b), "s": symmetric_kl(a, b)}
        names |= {"KL12": kl_divergence(a, b), "KL21": kl_divergence(b, a)}
        names = {name: value[KEEP[kind]] for name, value in names.items()}
        names |= {"alpha": ALPHA, "B": B, "C": C, "N": KEEP[kind].sum()}
        return sum(eval(part, vars(jnp) | names) for part in parts)

    check(spelled_out, partial(old, alpha=ALPHA), kind)
    if row["alpha here"] == "none, see below":
        assert name == "official HF RoBERTa"
        return
    for alpha in (ALPHA, float(shipped) if shipped[0].isdigit() else 0.5):
        how = ("logits", "labels", "labels != -100")
        ours = partial(converted, row, kind=kind, alpha=alpha, how=how)
        check(ours, partial(old, alpha=alpha), kind)


def test_nothing_is_left_out():
    assert set(blocks("migrating.md") | blocks("method.md")) == set(BLOCKS)
    assert set(table("migrating.md")) == set(SIDE_BY_SIDE)
    assert set(table("method.md")) == set(PUBLISHED)
