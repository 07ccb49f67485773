"""The objective in plain float64 numpy, one position at a time: slow and obvious."""

from itertools import combinations

import numpy as np


def log_softmax(z):
    z = np.asarray(z, np.float64)
    finite = z[z != -np.inf]
    log_z = finite.max() + np.log(np.exp(finite - finite.max()).sum())
    return z - log_z


def smoothed(label, z, eps, smoothing):
    """Target distribution of one position; smoothing runs over possible classes."""
    possible = z != -np.inf
    y = np.zeros(len(z))
    if np.ndim(label) == 0:
        y[label] = 1.0
    else:
        y[:] = label
    count = possible.sum()
    if smoothing == "uniform":
        return (1 - eps) * y + eps / count * possible
    each = eps / max(count - 1, 1)
    return (1 - eps - each) * y + each * possible


def cross_entropy(z, label, eps=0.0, smoothing="uniform"):
    log_p = log_softmax(z)
    target = smoothed(label, np.asarray(z), eps, smoothing)
    return -sum(t * lp for t, lp in zip(target, log_p, strict=True) if t > 0)


def kl(za, zb):
    la, lb = log_softmax(za), log_softmax(zb)
    return sum(np.exp(x) * (x - y) for x, y in zip(la, lb, strict=True) if x > -np.inf)


def js(za, zb):
    p, q = np.exp(log_softmax(za)), np.exp(log_softmax(zb))
    m = (p + q) / 2
    terms = [(p, m), (q, m)]
    return 0.5 * sum(
        x * np.log(x / y)
        for ps, ms in terms
        for x, y in zip(ps, ms, strict=True)
        if x > 0
    )


def squared(za, zb):
    return ((np.exp(log_softmax(za)) - np.exp(log_softmax(zb))) ** 2).sum()


DIVERGENCES = {
    "symmetric_kl": lambda a, b: 0.5 * (kl(a, b) + kl(b, a)),
    "forward_kl": kl,
    "reverse_kl": lambda a, b: kl(b, a),
    "js": js,
    "squared": squared,
}


def rdrop(
    logits,
    labels,
    *,
    alpha,
    eps=0.0,
    smoothing="uniform",
    where=None,
    weight=None,
    label_weight=None,
    divergence="symmetric_kl",
    scale="sum",
):
    """Loss, cross entropy per pass and divergence; positions flattened to one axis."""
    k, positions = logits.shape[:2]
    ce = s = w_ce = w_s = 0.0
    for n in range(positions):
        w = 1.0 if weight is None else float(weight[n])
        w = w if where is None or where[n] else 0.0
        if w == 0:
            continue
        pairs = [
            DIVERGENCES[divergence](logits[i, n], logits[j, n])
            for i, j in combinations(range(k), 2)
        ]
        s += w * (np.mean(pairs) if pairs else 0.0)
        w_s += w
        label_w = w * (1.0 if label_weight is None else float(label_weight[n]))
        if label_w == 0:
            continue
        ce += label_w * sum(
            cross_entropy(logits[i, n], labels[n], eps, smoothing) for i in range(k)
        )
        w_ce += label_w
    ce = ce / w_ce if w_ce else 0.0
    s = s / w_s if w_s else 0.0
    loss = ce + alpha * s
    return (loss / k if scale == "mean" else loss), ce / k, s
