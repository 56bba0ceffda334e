"""ATLAS (Behrouz et al. 2025, arXiv 2505.23735) written down from its equations in plain PyTorch (float64), token by token: the
memory of every token in full, the objective over the window as a sum of its terms, its gradient by automatic differentiation
(recorded, so that the outer gradient goes through it) at the memory before the token's chunk.

Run it to make the fixtures beside it:  python make_atlas_fixtures.py
"""

import itertools
import math

import torch
import torch.nn.functional as F

import make_mixer_fixtures as mixers
from make_mixer_fixtures import heads_of, join, rms, short_convolution, softmax


def monomials(x, coefficients):
    """All monomials of degree <= p by combinations, weighted so that f(x) . f(y) = sum_i a_i (x . y)^i."""
    columns = []
    for n in range(len(coefficients)):
        for picks in itertools.combinations_with_replacement(range(x.shape[-1]), n):
            count = math.factorial(n) / math.prod(math.factorial(picks.count(i)) for i in set(picks))
            column = torch.ones_like(x[..., 0])
            for i in picks:
                column = column * x[..., i]
            columns.append(column * (coefficients[n] * count).sqrt())
    return torch.stack(columns, -1)


def orthogonal_factor(s):
    """NS_5 of each matrix."""
    x = s / s.square().sum((-2, -1), keepdim=True).sqrt()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        g = x @ x.mT
        x = 3.4445 * x + (-4.7750 * g + 2.0315 * g @ g) @ x
    return x.mT if tall else x


def answer(kind, z, weights):
    """M(z; W), z [B, H, F]."""
    row = z[:, :, None]
    if kind == "matrix":
        return (row @ weights[0])[:, :, 0]
    hidden = F.gelu(row @ weights[1])
    if kind == "gated_mlp":
        hidden = hidden * (row @ weights[2])
    y = (hidden @ weights[0])[:, :, 0]
    return z + y if z.shape[-1] == y.shape[-1] else y


def sizes(c):
    dv = c["width"] // c["heads"]
    degree = c.get("degree", 2)
    dk = c.get("key_width", 0) or (12 if degree > 1 else dv)
    return dk, dv, math.comb(dk + degree, degree) if degree > 1 else dk


def memory(w, x, mask, c):
    heads, window, chunk = c["heads"], c.get("window", 4), c.get("chunk", 8)
    kind, inner = c.get("memory", "matrix"), c.get("inner", "gradient")
    q, k, v = (x @ w[n + ".weight"].T for n in ("query", "key", "value"))
    if c.get("convolution", 4):
        q, k, v = (short_convolution(y, w[n + "_convolution.weight"]) for y, n in ((q, "query"), (k, "key"), (v, "value")))
    q, k, v = (heads_of(y, heads) for y in (q, k, v))
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    if c.get("degree", 2) > 1:
        a = w["features.log_coefficients"].exp()
        q, k = (monomials(y, a / a.sum()) for y in (q, k))

    def gate(name):
        return torch.sigmoid(x @ w[name + ".weight"].T + w[name + ".bias"]).permute(0, 2, 1)  # [B, H, L]

    alpha = gate("retention") ** (1 / c.get("gate_temperature", 16))
    eta = gate("rate") * (c.get("rate", 0) or (0.1 if inner == "muon" else 2 / (chunk * window)))
    theta = None if inner == "gradient" else gate("persistence")
    gamma = gate("window").reshape(x.shape[0], heads, window, -1)  # [B, H, c, L]
    names = ["memory"] + [n for n in ("memory_in", "memory_gate") if n in w]
    weights = [w[n].expand(x.shape[0], *w[n].shape) * 1 for n in names]
    momentum = [torch.zeros_like(y) for y in weights]
    outputs = []
    for t in range(x.shape[1]):
        if t % chunk == 0:
            start = weights
        loss = 0
        for age in range(min(window, t + 1)):
            read = answer(kind, k[:, :, t - age], start)
            if c.get("objective") == "dot_product":
                term = -(read * v[:, :, t - age]).sum(-1)
            else:
                term = 0.5 * (read - v[:, :, t - age]).square().sum(-1)
            loss = loss + (gamma[:, :, age, t] * term).sum()
        slopes = torch.autograd.grad(loss, start, create_graph=True)
        if inner == "gradient":
            momentum = [-g for g in slopes]
        else:
            momentum = [theta[:, :, t, None, None] * s - g for s, g in zip(momentum, slopes)]
        steps = [orthogonal_factor(s) for s in momentum] if inner == "muon" else momentum
        weights = [alpha[:, :, t, None, None] * y + eta[:, :, t, None, None] * s for y, s in zip(weights, steps)]
        outputs.append(answer(kind, q[:, :, t], weights))
    o = join(rms(torch.stack(outputs, 2), w["norm.weight"], 1e-5))
    if c.get("output_gate", True):
        o = o * F.silu(x @ w["output_gate.weight"].T)
    return o @ w["output.weight"].T


def atlas(w, x, mask, c):
    # Padding stands at the end, and what comes later changes nothing.
    hybrid = c.get("hybrid", "none")
    if hybrid == "none":
        return memory(w, x, mask, c)
    own = {n.removeprefix("memory."): y for n, y in w.items() if n.startswith("memory.")}
    attention = {n.removeprefix("attention."): y for n, y in w.items() if n.startswith("attention.")}
    place = {"heads": c["heads"], "causal": True, "window": c["attention_window"]}
    if hybrid == "mag":
        return softmax(attention, x, mask, place) * torch.sigmoid(memory(own, x, mask, c))
    return softmax(attention, memory(own, x, mask, c), mask, place)


def atlas_shapes(c):
    d, h, window = c["width"], c["heads"], c.get("window", 4)
    dk, dv, features = sizes(c)
    hidden = c.get("expansion", 4) * features
    shapes = {"query.weight": [h * dk, d], "key.weight": [h * dk, d], "value.weight": [h * dv, d]}
    for name, width in (("retention", h), ("rate", h), ("persistence", h), ("window", h * window)):
        if name != "persistence" or c.get("inner", "gradient") != "gradient":
            shapes |= {name + ".weight": [width, d], name + ".bias": [width]}
    if c.get("degree", 2) > 1:
        shapes["features.log_coefficients"] = [c.get("degree", 2) + 1]
    kind = c.get("memory", "matrix")
    shapes["memory"] = [h, features if kind == "matrix" else hidden, dv]
    if kind != "matrix":
        shapes["memory_in"] = [h, features, hidden]
    if kind == "gated_mlp":
        shapes["memory_gate"] = [h, features, hidden]
    if c.get("output_gate", True):
        shapes["output_gate.weight"] = [h * dv, d]
    shapes |= {"norm.weight": [dv], "output.weight": [d, h * dv]}
    if c.get("convolution", 4):
        size = c.get("convolution", 4)
        shapes |= {"query_convolution.weight": [h * dk, size], "key_convolution.weight": [h * dk, size], "value_convolution.weight": [h * dv, size]}
    if c.get("hybrid", "none") != "none":
        shapes = {"memory." + n: s for n, s in shapes.items()}
        shapes |= {f"attention.{n}.weight": [d, d] for n in ("query", "key", "value", "output")}
    return shapes


BOTH, PARALLEL = mixers.BOTH, mixers.PARALLEL

SMALL = {"width": 8, "heads": 2, "causal": True, "key_width": 3, "gate_temperature": 4.0}

# name: (configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "exact": (SMALL | {"window": 4, "chunk": 1, "rate": 0.5}, 2, 19, None, BOTH),
    "chunk": (SMALL | {"window": 3, "chunk": 8, "rate": 0.4}, 2, 29, None, BOTH),
    "wide_window": (SMALL | {"window": 12, "chunk": 8, "rate": 0.2}, 1, 27, None, BOTH),
    "defaults": ({"width": 16, "heads": 2, "causal": True}, 1, 21, None, BOTH),
    "cubic": (SMALL | {"degree": 3, "chunk": 5, "rate": 0.5, "convolution": 0, "output_gate": False}, 1, 17, None, BOTH),
    "momentum": (SMALL | {"inner": "momentum", "window": 3, "chunk": 4, "rate": 0.2}, 2, 22, None, BOTH),
    "muon": (SMALL | {"inner": "muon", "window": 2, "chunk": 3}, 1, 11, None, BOTH),
    "mlp": ({"width": 8, "heads": 2, "causal": True, "memory": "mlp", "degree": 1, "window": 3, "chunk": 4, "expansion": 2, "rate": 0.1}, 2, 15, None, BOTH),
    "gated_mlp": (SMALL | {"memory": "gated_mlp", "inner": "momentum", "window": 2, "chunk": 3, "expansion": 1, "rate": 0.05}, 1, 13, None, BOTH),
    "dot_product": (SMALL | {"objective": "dot_product", "window": 3, "chunk": 4, "rate": 0.5}, 2, 18, None, BOTH),
    "masked": (SMALL | {"window": 3, "chunk": 4, "rate": 0.4}, 2, 22, [22, 9], PARALLEL),
    "mag": (SMALL | {"hybrid": "mag", "attention_window": 4, "chunk": 4, "rate": 0.4}, 1, 18, None, BOTH),
    "mal": (SMALL | {"hybrid": "mal", "attention_window": 4, "chunk": 4, "rate": 0.4}, 1, 18, None, BOTH),
}


def main():
    mixers.MIXERS["atlas"] = atlas
    mixers.SHAPES["atlas"] = atlas_shapes
    for seed, (name, (c, batch, length, lengths, modes)) in enumerate(CASES.items()):
        tensors = mixers.make("atlas", c, batch, length, lengths, seed)
        # Muon's five iterations multiply the rounding of small singular values by up to 3.4445^5 = 485: float32 has no more.
        tolerance = {"float32_tolerance": "1e-4"} if c.get("inner") == "muon" else {}
        mixers.save(f"atlas_{name}", "atlas", c, modes, tensors, **tolerance)


if __name__ == "__main__":
    main()
