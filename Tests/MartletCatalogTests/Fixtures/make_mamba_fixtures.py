"""The selective state space of Mamba from its equations in plain PyTorch (float64), token by token.

Run it to make the fixtures beside it:  python make_mamba_fixtures.py
See make_mixer_fixtures.py for what the files hold.
"""

import torch

import make_mixer_fixtures as base


def mamba(w, x, mask, c):
    """Gu & Dao 2023, algorithm 2 and figure 3."""
    inner, n = c.get("expansion", 2) * c["width"], c["state"]
    rank, size = w["dt_proj.weight"].shape[1], w["conv1d.weight"].shape[-1]
    a = -w["A_log"].exp()
    h = torch.zeros(x.shape[0], inner, n)
    seen, out = [], []
    for t in range(x.shape[1]):
        xz = x[:, t] @ w["in_proj.weight"].T
        seen.append(xz[:, :inner])
        u = w["conv1d.bias"]
        for k in range(size):
            if t - k >= 0:
                u = u + seen[t - k] * w["conv1d.weight"][:, 0, size - 1 - k]
        u = u * torch.sigmoid(u)
        delta, b, read = (u @ w["x_proj.weight"].T).split([rank, n, n], -1)
        step = (1 + (delta @ w["dt_proj.weight"].T + w["dt_proj.bias"]).exp()).log()
        h = (step[:, :, None] * a).exp() * h + (step * u)[:, :, None] * b[:, None]
        y = (h * read[:, None]).sum(-1) + w["D"] * u
        z = xz[:, inner:]
        out.append((y * z * torch.sigmoid(z)) @ w["out_proj.weight"].T)
    return torch.stack(out, 1)


def mamba_shapes(c):
    d, n = c["width"], c["state"]
    inner, rank = c.get("expansion", 2) * d, c.get("step_rank") or -(-d // 16)
    return {
        "in_proj.weight": [2 * inner, d], "conv1d.weight": [inner, 1, c.get("convolution", 4)], "conv1d.bias": [inner],
        "x_proj.weight": [rank + 2 * n, inner], "dt_proj.weight": [inner, rank], "dt_proj.bias": [inner], "A_log": [inner, n],
        "D": [inner], "out_proj.weight": [d, inner],
    }


base.MIXERS["mamba"], base.SHAPES["mamba"] = mamba, mamba_shapes
base.CASES = {
    "mamba_plain": ("mamba", {"width": 8, "causal": True, "state": 16}, 2, 37, None, base.BOTH),
    "mamba_options": (
        "mamba",
        {"width": 6, "causal": True, "state": 5, "expansion": 3, "convolution": 2, "step_rank": 4},
        1, 70, None, base.BOTH,
    ),
    "mamba_pointwise": ("mamba", {"width": 20, "causal": True, "state": 3, "expansion": 1, "convolution": 1}, 1, 9, None, base.BOTH),
    "mamba_masked": ("mamba", {"width": 8, "causal": True, "state": 4}, 2, 33, [33, 6], base.PARALLEL),
}

if __name__ == "__main__":
    base.main(base.pathlib.Path(__file__).resolve().parent)
