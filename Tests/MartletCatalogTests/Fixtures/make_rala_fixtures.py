"""Rank-augmented linear attention (Fan et al. 2024, section 3), token by token in float64: fixtures of `rala`.

    python make_rala_fixtures.py

Every output is a sum over all tokens of explicit weights; rotations are products with 2 × 2 matrices, the local term a sum over cells.
"""

import json
import math
import pathlib
import sys

import torch
from safetensors.torch import save_file

from make_mixer_fixtures import heads_of, join

torch.set_default_dtype(torch.float64)


def feature(x):
    return torch.where(x > 0, x + 1, x.exp())


def cell(t, c):
    return t // c["columns"], t % c["columns"]


def turned(x, t, c):
    """One token's channels [..., d]: pair i by the row's angle in the first half, the column's in the second."""
    d = x.shape[-1]
    quarter = d // 4
    out = x.clone()
    for pair in range(d // 2):
        i = pair % quarter
        theta = 10000.0 ** -(i / (quarter - 1)) if quarter > 1 else 1.0
        angle = theta * cell(t, c)[pair // quarter]
        a, b = x[..., 2 * pair], x[..., 2 * pair + 1]
        out[..., 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
        out[..., 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def local(v, weight, bias, keep, c):
    """sum over the k × k cells around a token's; v [L, D]"""
    length, size = v.shape[0], weight.shape[-1]
    where = {cell(t, c): t for t in range(length) if keep[t]}
    rows = []
    for t in range(length):
        r, col = cell(t, c)
        total = bias
        for i in range(size):
            for j in range(size):
                other = where.get((r + i - size // 2, col + j - size // 2))
                if other is not None:
                    total = total + v[other] * weight[:, 0, i, j]
        rows.append(total)
    return torch.stack(rows)


def rala(w, x, mask, c):
    out = []
    for b in range(x.shape[0]):
        length, width = x.shape[1:]
        real = [t for t in range(length) if mask is None or mask[b, t] > 0]
        parts = (x[b] @ w["qkvo.weight"].T + w["qkvo.bias"]).split(width, -1)
        q, k = (feature(heads_of(y[None], c["heads"])[0]) for y in parts[:2])  # [H, L, d]
        v = heads_of(parts[2][None], c["heads"])[0]
        n, d = len(real), q.shape[-1]
        alpha = torch.ones(c["heads"], length)
        if c.get("reweighted", True):
            mean = sum(q[:, t] for t in real) / n
            scores = torch.stack([(mean * k[:, t]).sum(-1) / math.sqrt(d) for t in real], -1)
            scores = n * scores.exp() / scores.exp().sum(-1, keepdim=True)
            alpha = torch.stack([scores[:, real.index(t)] if t in real else torch.zeros(c["heads"]) for t in range(length)], -1)
        rotary = c.get("rotary", True)
        heads = []
        for t in range(length):
            top, bottom = 0, 0
            qt = turned(q[:, t], t, c) if rotary else q[:, t]
            for s in real:
                ks = alpha[:, s, None] * k[:, s]
                top = top + (qt * (turned(ks, s, c) if rotary else ks)).sum(-1, keepdim=True) * v[:, s]
                bottom = bottom + (q[:, t] * ks).sum(-1, keepdim=True)
            heads.append(top / n / (bottom / n + 1e-6) if c.get("reweighted", True) else top / (bottom + 1e-6))
        y = join(torch.stack(heads, 1)[None])[0]
        if c.get("local_kernel", 5):
            y = y + local(parts[2], w["lepe.weight"], w["lepe.bias"], [t in real for t in range(length)], c)
        if c.get("gated", True):
            y = y * parts[3]
        out.append(y @ w["output.weight"].T + w["output.bias"])
    return torch.stack(out)


def shapes(c):
    d, size = c["width"], c.get("local_kernel", 5)
    parts = 4 if c.get("gated", True) else 3
    result = {"qkvo.weight": [parts * d, d], "qkvo.bias": [parts * d], "output.weight": [d, d], "output.bias": [d]}
    if size:
        result |= {"lepe.weight": [d, 1, size, size], "lepe.bias": [d]}
    return result


def write(folder, name, id, mixer, shapes, configuration, batch, length, lengths, seed):
    c = {"causal": False} | configuration
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    w = {}
    for key, shape in shapes(c).items():
        fan = math.prod(shape[1:]) if len(shape) > 1 else 25
        w[key] = (normal(*shape) / math.sqrt(fan)).float().double().requires_grad_()
    x = normal(batch, length, c["width"]).float().double().requires_grad_()
    grad_y = normal(batch, length, c["width"]).float().double()
    tensors = {"x": x, "grad_y": grad_y} | {"weight." + n: v for n, v in w.items()}
    mask = None
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
        grad_y *= mask[..., None]
    y = mixer(w, x, mask, c)
    gradients = torch.autograd.grad(y, [x] + list(w.values()), grad_y, allow_unused=True)
    expected = {"y": y if mask is None else y * mask[..., None], "grad_x": gradients[0]}
    expected |= {"grad." + n: torch.zeros_like(w[n]) if g is None else g for n, g in zip(w, gradients[1:])}
    tensors |= {"expected." + n: v for n, v in expected.items()}
    tensors = {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}
    metadata = {"id": id, "configuration": json.dumps(c), "modes": "parallel,reference"}
    save_file(tensors, folder / f"mixer_{id}_{name}.safetensors", metadata=metadata)
    print(f"{id}_{name}: {sum(v.numel() * v.element_size() for v in tensors.values()) / 1000:.1f} kB")


# name: (configuration, batch, length, lengths of the padded sequences)
CASES = {
    "square": ({"width": 8, "heads": 2, "columns": 4}, 2, 16, None),
    "short_last_row": ({"width": 8, "heads": 1, "columns": 5}, 1, 18, None),
    "masked": ({"width": 8, "heads": 2, "columns": 4}, 2, 15, [15, 6]),
    "plain": ({"width": 8, "heads": 2, "columns": 3, "reweighted": False, "gated": False, "rotary": False}, 1, 11, None),
    "small_kernel": ({"width": 12, "heads": 1, "columns": 4, "local_kernel": 3}, 1, 12, None),
    "no_local_term": ({"width": 12, "heads": 3, "columns": 6, "local_kernel": 0}, 1, 13, None),
}


def main(folder):
    for seed, (name, (c, batch, length, lengths)) in enumerate(CASES.items()):
        write(folder, name, "rala", rala, shapes, c, batch, length, lengths, seed)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
