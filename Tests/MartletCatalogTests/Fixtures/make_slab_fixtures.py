"""SLAB (Guo et al. 2024) token by token in float64: fixtures of `slab`, the mixer and the norm.

    python make_slab_fixtures.py

The mixer (section 3.2) as sums over all tokens of explicit weights. The norm (section 3.1) as its formulas: the mixture in training at
given λ with the running averages that it leaves, RepBN in evaluation, and what a linear map gives behind and before it.
"""

import json
import math
import pathlib
import sys

import torch
from safetensors.torch import save_file

from make_mixer_fixtures import heads_of, join
from make_rala_fixtures import local, write

torch.set_default_dtype(torch.float64)


def slab(w, x, mask, c):
    out = []
    for b in range(x.shape[0]):
        length, width = x.shape[1:]
        real = [t for t in range(length) if mask is None or mask[b, t] > 0]
        projected = x[b] @ w["qkv.weight"].T
        if c.get("bias", True):
            projected = projected + w["qkv.bias"]
        parts = projected.split(width, -1)
        zero = torch.zeros(())
        q = torch.maximum(heads_of(parts[0][None], c["heads"])[0], zero)
        k = torch.maximum(heads_of((parts[1] + w["positions"][0, :length])[None], c["heads"])[0], zero)
        v = heads_of(parts[2][None], c["heads"])[0]
        tokens = []
        for t in range(length):
            top, bottom = 0, 0
            for s in real:
                weight = (q[:, t] * k[:, s]).sum(-1, keepdim=True)
                top, bottom = top + weight * v[:, s], bottom + weight
            tokens.append(top / (bottom + 1e-6))
        y = torch.stack(tokens, 1)  # [H, L, d]
        if c.get("local_kernel", 5):
            keep = [t in real for t in range(length)]
            y = y + torch.stack([local(v[h], w["convolution.weight"], w["convolution.bias"], keep, c) for h in range(c["heads"])])
        out.append(join(y[None])[0] @ w["output.weight"].T + w["output.bias"])
    return torch.stack(out)


def shapes(c):
    d, size = c["width"], c.get("local_kernel", 5)
    head = d // c["heads"]
    result = {"qkv.weight": [3 * d, d], "output.weight": [d, d], "output.bias": [d], "positions": [1, c["length"], d]}
    if c.get("bias", True):
        result["qkv.bias"] = [3 * d]
    if size:
        result |= {"convolution.weight": [head, 1, size, size], "convolution.bias": [head]}
    return result


# name: (configuration, batch, length, lengths of the padded sequences)
CASES = {
    "square": ({"width": 8, "heads": 2, "columns": 4, "length": 16}, 2, 16, None),
    "few_tokens": ({"width": 16, "heads": 1, "columns": 3, "length": 9}, 1, 7, None),
    "masked": ({"width": 8, "heads": 2, "columns": 4, "length": 15}, 2, 15, [15, 6]),
    "no_bias": ({"width": 12, "heads": 3, "columns": 5, "length": 20, "bias": False, "local_kernel": 3}, 1, 13, None),
}


def norm(folder):
    """Every case in one file; a name's first part is its case."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).float().double()

    tensors, width, epsilon = {}, 6, 1e-5
    for number, (name, weight, lengths) in enumerate(
        [("start", 1.0, None), ("middle", 0.4, None), ("end", 0.0, None), ("masked", 0.25, [5, 2])]
    ):
        x, up = normal(2, 5, width) * 2 + 1, normal(2, 5, width)
        p = {n: normal(width) for n in ("layer_weight", "layer_bias", "batch_weight", "batch_bias", "running_mean")}
        p["running_var"], p["eta"] = normal(width).square() + 0.5, normal(1)
        leaves = {"x": x, **p}
        for n in leaves:
            leaves[n].requires_grad_(not n.startswith("running"))
        keep = torch.ones(2, 5) if lengths is None else torch.tensor([[float(t < n) for t in range(5)] for n in lengths])
        up = up * keep[..., None]
        real = [(b, t) for b in range(2) for t in range(5) if keep[b, t] > 0]
        rows = torch.stack([x[b, t] for b, t in real])
        mean = sum(rows) / len(real)
        variance = sum((r - mean) ** 2 for r in rows) / len(real)
        own = x.mean(-1, keepdim=True)
        spread = ((x - own) ** 2).mean(-1, keepdim=True)
        layer = (x - own) / (spread + epsilon).sqrt() * p["layer_weight"] + p["layer_bias"]
        batch = (x - mean) / (variance + epsilon).sqrt() * p["batch_weight"] + p["batch_bias"] + p["eta"] * x
        y = weight * layer + (1 - weight) * batch
        names = ["x", "layer_weight", "layer_bias", "batch_weight", "batch_bias", "eta"]
        gradients = torch.autograd.grad(y, [leaves[n] for n in names], up, allow_unused=True)
        after_mean = 0.9 * p["running_mean"] + 0.1 * mean
        after_variance = 0.9 * p["running_var"] + 0.1 * variance * len(real) / (len(real) - 1)
        evaluated = (x - after_mean) / (after_variance + epsilon).sqrt() * p["batch_weight"] + p["batch_bias"] + p["eta"] * x
        w, bias, before = normal(4, width), normal(4), normal(width, 3)
        z = normal(2, 5, 3)
        inner = z @ before.T
        behind = (inner - after_mean) / (after_variance + epsilon).sqrt() * p["batch_weight"] + p["batch_bias"] + p["eta"] * inner
        case = {"x": x, "up": up, "lambda": torch.tensor([weight]), **p, "w": w, "bias": bias, "before": before, "z": z}
        if lengths is not None:
            case["mask"] = keep > 0
        case |= {"expected.y": y * keep[..., None], "expected.running_mean": after_mean, "expected.running_var": after_variance}
        case |= {"expected.evaluated": evaluated, "expected.next": evaluated @ w.T + bias, "expected.next_without_bias": evaluated @ w.T}
        case |= {"expected.previous": behind}
        case |= {"expected.grad." + n: torch.zeros_like(leaves[n]) if g is None else g for n, g in zip(names, gradients)}
        tensors |= {f"{name}.{n}": (v if v.dtype == torch.bool else v.detach()).contiguous() for n, v in case.items()}
    save_file(tensors, folder.parents[1] / "MartletNNTests/Fixtures/slab_norm.safetensors", metadata={"cases": "start,middle,end,masked"})
    print(f"slab_norm: {sum(v.numel() * v.element_size() for v in tensors.values()) / 1000:.1f} kB")


def main(folder):
    for seed, (name, (c, batch, length, lengths)) in enumerate(CASES.items()):
        write(folder, name, "slab", slab, shapes, c, batch, length, lengths, 20 + seed)
    norm(folder)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
