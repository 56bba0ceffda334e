"""A linearised attention layer and its transfer loss (Zhang et al. 2024, section 3) in plain PyTorch (float64), position by position,
independent of Martlet's code.

Run it to make the fixtures beside it:  python make_lolcats_fixtures.py
Each file holds the tensors that `martlet probe lolcats` takes and, under `expected.`, those it must give.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file

from make_mixer_fixtures import heads_of, join, rms, rotate

torch.set_default_dtype(torch.float64)


def features(x, w, name, kind):
    """x [d] of one head -> its features, at least 1e-12."""
    y = x @ w[name + ".weight"]
    if kind == "rectified":
        return torch.relu(y + w[name + ".bias"]).clamp(min=1e-12)
    return torch.cat([y.exp() / y.exp().sum(), (-y).exp() / (-y).exp().sum()]).clamp(min=1e-12)


def layer(w, x, c):
    b, l, _ = x.shape
    heads, shared = c["heads"], c.get("kv_heads", 0) or c["heads"]
    window, blocks, kind = c.get("window", 64), c.get("layout") == "blocks", c.get("feature_map", "hedgehog")

    def project(name, count):
        y = x @ w[name + ".weight"].T
        return heads_of(y + w[name + ".bias"] if c.get("bias") else y, count)

    q, k, v = project("query", heads), project("key", shared), project("value", shared)
    if c.get("qk_norm"):
        q, k = rms(q, w["query_norm.weight"], 1e-6), rms(k, w["key_norm.weight"], 1e-6)
    if c.get("rotary", True):
        q, k = rotate(q), rotate(k)
    scale = 1 / math.sqrt(q.shape[-1])
    outputs, teachers, entropies = [], [], []
    for n in range(b):
        for h in range(heads):
            kh, vh = k[n, h * shared // heads], v[n, h * shared // heads]
            mine = {key[: -len(".weight")] + ".weight": t[h] for key, t in w.items() if key.endswith("_map.weight")}
            mine |= {key: t[h] for key, t in w.items() if key.endswith("_map.bias")}
            g = torch.sigmoid(w["window_factor"][h])
            outer = 1 - g if c.get("affine") else 1.0
            for i in range(l):
                first = (i // window - 1) * window if blocks else i - window + 1
                inside = [j for j in range(i + 1) if j >= first]
                before = [j for j in range(i + 1) if j < first]
                scores = torch.stack([q[n, h, i] @ kh[j] * scale for j in inside])
                soft = g * (scores - scores.max()).exp()
                phi = features(q[n, h, i], mine, "query_map", kind)
                linear = [outer * (phi @ features(kh[j], mine, "key_map", kind)) for j in before]
                weights = torch.cat([torch.stack(linear), soft]) if linear else soft
                weights = weights / weights.sum()
                outputs.append(weights @ vh[: i + 1])
                true = torch.softmax(torch.stack([q[n, h, i] @ kh[j] * scale for j in range(i + 1)]), 0)
                teachers.append(true @ vh[: i + 1])
                entropies.append(-(true * weights.log()).sum())
    shape = (b, heads, l, -1)
    student, teacher = torch.stack(outputs).reshape(shape), torch.stack(teachers).reshape(shape)
    loss = c.get("output_factor", 1000) * (student - teacher).square().mean()
    loss = loss + c.get("cross_entropy_factor", 0) * torch.stack(entropies).mean()

    def out(o):
        y = join(o) @ w["output.weight"].T
        return y + w["output.bias"] if c.get("bias") else y

    return out(student), out(teacher), loss


def make(c, batch, length, seed):
    generator = torch.Generator().manual_seed(seed)
    width, heads, shared = c["width"], c["heads"], c.get("kv_heads", 0) or c["heads"]
    d = width // heads
    columns = c.get("features") or (d if c.get("feature_map") == "rectified" else max(1, d // 2))
    shapes = {"query.weight": [width, width], "key.weight": [shared * d, width], "value.weight": [shared * d, width], "output.weight": [width, width]}
    if c.get("bias"):
        shapes |= {"query.bias": [width], "key.bias": [shared * d], "value.bias": [shared * d], "output.bias": [width]}
    if c.get("qk_norm"):
        shapes |= {"query_norm.weight": [d], "key_norm.weight": [d]}
    for name in ("query_map", "key_map"):
        shapes[name + ".weight"] = [heads, d, columns]
        if c.get("feature_map") == "rectified":
            shapes[name + ".bias"] = [heads, columns]
    shapes["window_factor"] = [heads]
    w = {}
    for name, shape in shapes.items():
        value = torch.randn(*shape, generator=generator)
        value = value if "map.weight" in name else value / math.sqrt(shape[-1]) if len(shape) > 1 else 0.3 * value
        if "norm" in name:
            value = value + 1
        w[name] = value.float().double().requires_grad_()
    x = torch.randn(batch, length, width, generator=generator).float().double()
    y, teacher, loss = layer(w, x, c)
    trained = [n for n in w if "_map." in n or n == "window_factor"]
    gradients = torch.autograd.grad(loss, [w[n] for n in trained])
    tensors = {"x": x} | {"weight." + n: t for n, t in w.items()}
    expected = {"y": y, "teacher": teacher, "loss": loss} | {"grad." + n: g for n, g in zip(trained, gradients)}
    tensors |= {"expected." + n: t for n, t in expected.items()}
    return {n: t.detach().float().contiguous() for n, t in tensors.items()}


CASES = {
    "sliding": ({"width": 16, "heads": 2, "window": 4}, 2, 13, 1),
    "blocks": ({"width": 16, "heads": 2, "window": 4, "layout": "blocks", "features": 5}, 1, 18, 2),
    "grouped": ({"width": 16, "heads": 4, "kv_heads": 2, "window": 5, "bias": True, "qk_norm": True, "affine": True}, 1, 14, 3),
    "rectified": ({"width": 8, "heads": 2, "window": 3, "feature_map": "rectified", "rotary": False}, 2, 9, 4),
    "cross_entropy": ({"width": 8, "heads": 2, "window": 4, "output_factor": 100, "cross_entropy_factor": 0.5}, 1, 11, 5),
}

if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent
    for name, (configuration, batch, length, seed) in CASES.items():
        metadata = {"id": "lolcats", "configuration": json.dumps(configuration), "modes": "parallel,recurrent,reference"}
        save_file(make(configuration, batch, length, seed), folder / f"lolcats_{name}.safetensors", metadata)
