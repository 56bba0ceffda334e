"""Normalised kernel attention with a relative position bias, written down from its paper's equations in plain PyTorch (float64),
independent of Martlet's code.

Run it to make the fixtures beside it:  python make_nprf_fixtures.py
Every pair of a query and a key is weighed by itself. See make_mixer_fixtures.py for the files' form.
"""

import math

import torch

from make_mixer_fixtures import BOTH, PARALLEL, heads_of, join, save_all

torch.set_default_dtype(torch.float64)


def features(x, w, c):
    """x [B, H, L, d], w [H, m, d] -> phi [B, H, L, m]"""
    if c.get("normalized", True):
        x = x / x.square().sum(-1, keepdim=True).sqrt()
    else:
        x = x / x.shape[-1] ** 0.25
    m = w.shape[1]
    return torch.stack(
        [((w[:, a][None, :, None] * x).sum(-1) - x.square().sum(-1) / 2).exp() / math.sqrt(m) for a in range(m)], -1)


def place(i, j, c, distance):
    """Where b of key j and query i stands in a row."""
    clip = lambda value, limit: max(1 - limit, min(limit - 1, value))
    columns = c.get("grid_columns", 0)
    if columns:
        y, x = clip(j // columns - i // columns, distance), clip(j % columns - i % columns, columns)
        return (y + distance - 1) * (2 * columns - 1) + x + columns - 1
    return -clip(j - i, distance) if c["causal"] else clip(j - i, distance) + distance - 1


def reach(c):
    if c.get("max_distance"):
        return c["max_distance"]
    columns = c.get("grid_columns", 0)
    return -(-c["length"] // columns) if columns else c["length"]


def nprf(w, x, mask, c):
    b, l, _ = x.shape
    heads = c["heads"]
    q, k, v = (heads_of(x @ w[n + ".weight"].T, heads) for n in ("query", "key", "value"))
    q, k = features(q, w["features"], c), features(k, w["features"], c)
    out = []
    for i in range(l):
        numerator, denominator = torch.zeros(b, heads, v.shape[-1]), torch.zeros(b, heads)
        for j in range(i + 1 if c["causal"] else l):
            weight = (q[:, :, i] * k[:, :, j]).sum(-1)  # [B, H]
            if c.get("rpe", True):
                weight = weight * w["rpe.weight"][:, place(i, j, c, reach(c))].exp()
            if mask is not None:
                weight = weight * mask[:, j, None]
            numerator = numerator + weight[..., None] * v[:, :, j]
            denominator = denominator + weight
        out.append(numerator / denominator[..., None])
    return join(torch.stack(out, 2)) @ w["output.weight"].T


def make(c, batch, length, lengths, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    d, heads, columns = c["width"], c["heads"], c.get("grid_columns", 0)
    w = {n + ".weight": normal(d, d) / math.sqrt(d) for n in ("query", "key", "value", "output")}
    if c.get("rpe", True):
        distance = reach(c)
        count = (2 * distance - 1) * (2 * columns - 1) if columns else distance if c["causal"] else 2 * distance - 1
        w["rpe.weight"] = normal(1 if c.get("shared_bias") else heads, count)
        if c["causal"] and c.get("form") == "fourier":
            # In float32 a transform rounds as its largest sum; a first token of little weight would test that rounding.
            w["rpe.weight"] = 0.3 * w["rpe.weight"]
    w = {name: value.float().double().requires_grad_() for name, value in w.items()}
    directions = normal(heads, c["features"], d // heads).float().double()
    x = normal(batch, length, d).float().double().requires_grad_()
    grad_y = normal(batch, length, d).float().double()
    tensors = {"x": x, "grad_y": grad_y, "weight.features": directions} | {"weight." + n: v for n, v in w.items()}
    mask = None
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
        grad_y *= mask[..., None]
    y = nprf(w | {"features": directions}, x, mask, c)
    names = list(w)
    gradients = torch.autograd.grad(y, [x] + [w[n] for n in names], grad_y)
    expected = {"y": y if mask is None else y * mask[..., None], "grad_x": gradients[0]}
    expected |= {"grad." + n: g for n, g in zip(names, gradients[1:])}
    tensors |= {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


SMALL = {"width": 8, "heads": 2, "features": 5}

# name: (configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "causal": (SMALL | {"causal": True, "length": 19}, 2, 19, None, BOTH),
    "causal_fourier": (SMALL | {"causal": True, "length": 24, "form": "fourier"}, 1, 24, None, PARALLEL),
    "clipped": (SMALL | {"causal": True, "length": 21, "max_distance": 6, "shared_bias": True}, 1, 21, None, BOTH),
    "bidirectional": (SMALL | {"causal": False, "length": 21}, 2, 21, [21, 9], PARALLEL),
    "bidirectional_fourier": (SMALL | {"causal": False, "length": 21, "form": "fourier"}, 2, 21, [12, 21], PARALLEL),
    "grid": (SMALL | {"causal": False, "length": 20, "grid_columns": 5}, 1, 18, None, PARALLEL),
    "grid_fourier": (SMALL | {"causal": False, "length": 20, "grid_columns": 5, "form": "fourier"}, 1, 18, None, PARALLEL),
    "grid_causal_fourier": (SMALL | {"causal": True, "length": 20, "grid_columns": 4, "max_distance": 3, "form": "fourier"}, 1, 20, None, BOTH),
    "unnormalized": (SMALL | {"causal": True, "length": 17, "normalized": False}, 1, 17, None, BOTH),
    "without_rpe": (SMALL | {"causal": True, "length": 22, "rpe": False}, 1, 22, None, BOTH),
}


if __name__ == "__main__":
    save_all("nprf", CASES, make)
