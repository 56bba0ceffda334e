"""DeltaNet written down from its papers' equations in plain PyTorch (float64), token by token, independent of Martlet's code.

Run it to make the fixtures beside it:  python make_deltanet_fixtures.py
Yang et al. 2024 (2406.06484), equations of section 2.2; with a decay, Gated DeltaNet (2412.06464), section 3.
"""

import functools
import math

import torch
import torch.nn.functional as F

import make_mixer_fixtures as mixers
from make_mixer_fixtures import BOTH, PARALLEL, heads_of, join, rms, short_convolution


def deltanet(w, x, mask, c):
    b, l, _ = x.shape
    heads = c["heads"]
    parts = []
    for name in ("query", "key", "value"):
        y = x @ w[name + ".weight"].T
        parts.append(short_convolution(y, w[name + "_convolution.weight"]) if c.get("convolution", 4) else F.silu(y))
    q, k, v = (heads_of(y, heads) for y in parts)
    q = q / (q.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    k = k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    dk = q.shape[-1]
    beta = torch.sigmoid(x @ w["rate.weight"].T)  # [B, L, H]
    if c.get("negative_eigenvalues"):
        beta = 2 * beta
    alpha = torch.sigmoid(x @ w["decay.weight"].T + w["decay.bias"]) if c.get("gated") else torch.ones_like(beta)
    if mask is not None:
        beta = beta * mask[..., None]
        alpha = torch.where(mask[..., None] > 0, alpha, torch.ones_like(alpha))
    identity = torch.eye(dk)

    def scan(order):
        s = torch.zeros(b, heads, dk, v.shape[-1])
        out = [None] * l
        for t in order:
            kt, bt, at = k[:, :, t], beta[:, t, :, None, None], alpha[:, t, :, None, None]
            transition = identity - bt * kt[..., :, None] * kt[..., None, :]
            s = at * (transition @ s) + bt * kt[..., :, None] * v[:, :, t, None, :]
            out[t] = torch.einsum("bhk,bhkv->bhv", q[:, :, t], s) / math.sqrt(dk)
        return torch.stack(out, 2)

    o = scan(range(l))
    if not c["causal"]:
        o = o + scan(reversed(range(l)))
    o = join(rms(o, w["norm.weight"], 1e-5))
    if c.get("output_gate"):
        o = o * F.silu(x @ w["output_gate.weight"].T)
    return o @ w["output.weight"].T


def shapes(c):
    d, h, kernel = c["width"], c["heads"], c.get("convolution", 4)
    result = {n + ".weight": [d, d] for n in ("query", "key", "value", "output")}
    result |= {"rate.weight": [h, d], "norm.weight": [d // h]}
    if kernel:
        result |= {n + "_convolution.weight": [d, kernel] for n in ("query", "key", "value")}
    if c.get("gated"):
        result |= {"decay.weight": [h, d], "decay.bias": [h]}
    if c.get("output_gate"):
        result["output_gate.weight"] = [d, d]
    return result


# name: (configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "plain": ({"width": 16, "heads": 2, "causal": True}, 2, 37, None, BOTH),
    "gated": ({"width": 8, "heads": 2, "causal": True, "gated": True, "chunk": 8}, 2, 33, None, BOTH),
    "negative_eigenvalues": ({"width": 8, "heads": 1, "causal": True, "negative_eigenvalues": True, "convolution": 3}, 1, 50, None, BOTH),
    "output_gate": ({"width": 8, "heads": 2, "causal": True, "output_gate": True, "gated": True, "chunk": 16}, 1, 29, None, BOTH),
    "no_convolution": ({"width": 8, "heads": 2, "causal": True, "convolution": 0}, 2, 21, None, BOTH),
    "masked": ({"width": 8, "heads": 2, "causal": False, "gated": True, "chunk": 16}, 2, 37, [37, 14], PARALLEL),
}


if __name__ == "__main__":
    mixers.MIXERS["deltanet"], mixers.SHAPES["deltanet"] = deltanet, shapes
    mixers.save_all("deltanet", CASES, functools.partial(mixers.make, "deltanet"), first_seed=100)
