"""Selective S4 written down from its paper's equations (arXiv 2303.14526, section 3.2) in plain PyTorch, float64: one sequence at a time,
its real tokens only, the state spaces run as recurrences. See make_mixer_fixtures.py for the files' form.
"""

import math

import torch
import torch.nn.functional as F

from make_mixer_fixtures import PARALLEL, s4d, save_all, state_weights


def part(w, prefix):
    return {name[len(prefix) + 1 :]: value for name, value in w.items() if name.startswith(prefix + ".")}


def scores(w, g):
    """g [tokens, D] -> z [tokens]"""
    local = F.relu(g @ w["selector.local.weight"].T + w["selector.local.bias"])
    rows = []
    for l in local:
        pair = torch.cat([l, local.mean(0)])
        hidden = F.gelu(w["selector.hidden.weight"] @ pair + w["selector.hidden.bias"])
        rows.append((w["selector.score.weight"] @ hidden)[0])
    return torch.stack(rows)


def selective_s4(w, x, c):
    """x [tokens, D] -> the same, and the margin of the choice."""
    tokens = x.shape[0]
    with torch.no_grad():
        g = s4d(part(w, "guide"), x[None], None, c)[0]
        if c.get("residual_guide"):
            g = g + x
    z = scores(w, g)
    kept = max(1, math.floor((1 - c.get("ratio", 0.5)) * tokens + 0.5))
    order = sorted(range(tokens), key=lambda t: -z[t].item())
    chosen = sorted(order[:kept])
    margin = (z[order[kept - 1]] - z[order[kept]]).item() if kept < tokens else math.inf
    p = torch.softmax(z / c.get("temperature", 1.0), 0)
    picked = torch.stack([x[t] * (1 + p[t] - p[t].detach()) for t in chosen])
    y = s4d(part(w, "s4"), picked[None], None, c)[0]
    out = []
    for t in range(tokens):
        if t in chosen:
            out.append(y[chosen.index(t)])
        else:
            out.append(x[t] if c.get("unselected") == "identity" else torch.zeros_like(x[t]))
    return torch.stack(out), margin


def make(c, batch, length, lengths, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    # Whether the layer scans backwards as well is an option of its own here.
    site = {"width": c["width"], "state": c["state"], "causal": not c.get("bidirectional", True)}
    d, half = c["width"], max(1, c["width"] // 2)
    w = {f"{place}.{name}": value for place in ("s4", "guide") for name, value in state_weights("s4d", site, generator).items()}
    for name, shape in {"local": [half, d], "hidden": [half, 2 * half], "score": [1, half]}.items():
        w[f"selector.{name}.weight"] = 2 * normal(*shape) / math.sqrt(shape[1])
        if name != "score":
            # Some units must be on at every token, or their scores would be equal.
            w[f"selector.{name}.bias"] = 0.2 * normal(shape[0]) + 0.5
    w = {name: value.float().double().requires_grad_(not name.startswith("guide")) for name, value in w.items()}
    x = normal(batch, length, d).float().double().requires_grad_()
    grad_y = normal(batch, length, d).float().double()
    tensors = {"x": x, "grad_y": grad_y} | {"weight." + n: v for n, v in w.items()}
    rows, margins = [], []
    for b in range(batch):
        real = length if lengths is None else lengths[b]
        y, margin = selective_s4(w, x[b, :real], c)
        rows.append(F.pad(y, (0, 0, 0, length - real)))
        margins.append(margin)
    # Rounding in float32 must not change the choice.
    assert min(margins) > 1e-4, f"seed {seed}: the choice hangs on {min(margins)}"
    y = torch.stack(rows)
    if lengths is not None:
        mask = torch.tensor([[t < n for t in range(length)] for n in lengths])
        tensors["mask"] = mask
        grad_y *= mask[..., None]
    names = [n for n in w if not n.startswith("guide")]
    gradients = torch.autograd.grad(y, [x] + [w[n] for n in names], grad_y)
    expected = {"y": y, "grad_x": gradients[0]} | {"grad." + n: g for n, g in zip(names, gradients[1:])}
    tensors |= {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


# name: (configuration, batch, length, lengths of the padded sequences)
CASES = {
    "half": ({"width": 8, "causal": False, "state": 8}, 2, 24, None),
    "quarter": (
        {"width": 6, "causal": False, "state": 8, "ratio": 0.75, "bidirectional": False, "residual_guide": True, "temperature": 0.5},
        2, 33, None,
    ),
    "identity": (
        {"width": 5, "causal": False, "state": 16, "ratio": 0.4, "unselected": "identity", "discretization": "bilinear"}, 2, 21, None,
    ),
    "masked": ({"width": 8, "causal": False, "state": 8, "ratio": 0.5}, 3, 26, [26, 11, 4]),
    "all": ({"width": 4, "causal": False, "state": 8, "ratio": 0.0}, 1, 17, None),
}


if __name__ == "__main__":
    save_all("selective-s4", {name: (*case, PARALLEL) for name, case in CASES.items()}, make, first_seed=101)
