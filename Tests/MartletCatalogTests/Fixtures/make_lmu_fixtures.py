"""The Legendre memory unit from its equations in plain PyTorch (float64), token by token.

Run it to make the fixtures beside it:  python make_lmu_fixtures.py
See make_mixer_fixtures.py for what the files hold.
"""

import math

import torch

import make_mixer_fixtures as base


def held_system(d, theta):
    """LegT (Voelker et al. 2019, eqs. 1-2) held over a step of 1: e^A by its series after halving A, B by solving; in float32's numbers."""
    A, B = torch.zeros(d, d), torch.zeros(d)
    for i in range(d):
        B[i] = (2 * i + 1) / theta * (-1.0) ** i
        for j in range(d):
            A[i, j] = (2 * i + 1) / theta * (-1.0 if i < j else (-1.0) ** (i - j + 1))
    halvings = max(0, math.ceil(math.log2(A.abs().sum(1).max().item()))) + 3
    small, term, total = A / 2**halvings, torch.eye(d), torch.eye(d)
    for k in range(1, 30):
        term = term @ small / k
        total = total + term
    for _ in range(halvings):
        total = total @ total
    held = torch.linalg.solve(A, (total - torch.eye(d)) @ B)
    return total.float().double(), held.float().double()


def lmu(w, x, mask, c):
    A, B = held_system(c["memory"], c.get("window") or c["length"])
    m = torch.zeros(x.shape[0], c["memory"])
    out = []
    for t in range(x.shape[1]):
        u = (x[:, t] @ w["W_u.weight"].T + w["W_u.bias"]).clamp_min(0)
        m = m @ A.T + u * B
        h = (torch.cat([m, x[:, t]], -1) @ w["W_h.weight"].T + w["W_h.bias"]).clamp_min(0)
        out.append(h @ w["output.weight"].T + w["output.bias"] if c.get("projection", True) else h)
    return torch.stack(out, 1)


def lmu_shapes(c):
    d, n = c["width"], c["memory"]
    shapes = {"W_u.weight": [1, d], "W_u.bias": [1], "W_h.weight": [d, n + d], "W_h.bias": [d]}
    if c.get("projection", True):
        shapes |= {"output.weight": [d, d], "output.bias": [d]}
    return shapes


base.MIXERS["lmu"], base.SHAPES["lmu"] = lmu, lmu_shapes
base.CASES = {
    "lmu_plain": ("lmu", {"width": 8, "causal": True, "memory": 8, "length": 37}, 2, 37, None, base.BOTH),
    "lmu_long": ("lmu", {"width": 4, "causal": True, "memory": 12, "window": 40.5, "projection": False}, 1, 300, None, base.BOTH),
    "lmu_short_window": ("lmu", {"width": 6, "causal": True, "memory": 5, "window": 3}, 2, 16, None, base.BOTH),
    "lmu_masked": ("lmu", {"width": 8, "causal": True, "memory": 6, "window": 10}, 2, 35, [35, 13], base.PARALLEL),
}

if __name__ == "__main__":
    base.main(base.pathlib.Path(__file__).resolve().parent)
