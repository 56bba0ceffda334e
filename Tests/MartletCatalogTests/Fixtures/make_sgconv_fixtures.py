"""Structured global convolution written down from its paper's equations in plain PyTorch (float64), independent of Martlet's code.

Run it to make the fixtures beside it:  python make_sgconv_fixtures.py
The kernel is interpolated tap by tap and the convolution is the sum of its definition. See make_mixer_fixtures.py for the files' form.
"""

import math

import torch
import torch.nn.functional as F
from make_mixer_fixtures import BOTH, PARALLEL, save_all

torch.set_default_dtype(torch.float64)


def stretched(w, factor, kind):
    """[D, d] -> [D, factor d]; linear between the centres of the taps (align_corners=False)."""
    d = w.shape[-1]
    columns = []
    for j in range(factor * d):
        if kind == "nearest":
            columns.append(w[:, j // factor])
            continue
        position = max((j + 0.5) / factor - 0.5, 0)
        low = min(math.floor(position), d - 1)
        high, share = min(low + 1, d - 1), position - low
        columns.append((1 - share) * w[:, low] + share * w[:, high])
    return torch.stack(columns, -1)


def scales(c):
    return 1 + max(0, math.ceil(math.log2(c["length"] / c["kernel_dim"])))


def kernel(w, c, direction):
    weight = w["kernel.weight"][direction]  # [S, D, d]
    count, width, d = weight.shape
    kind, power = c.get("interpolation", "linear"), c.get("decay", "geometric") == "power"
    alpha = 1 / torch.linspace(c.get("decay_min", 2), c.get("decay_max", 2), width)
    total = d * 2 ** (count - 1)
    pieces = []
    for i in range(count):
        summed = c.get("scales") == "summed"
        piece = stretched(weight[i], 2 ** i if summed else 2 ** max(i - 1, 0), kind)
        if not power:
            piece = piece * alpha[:, None] ** i
        pieces.append(torch.cat([piece, torch.zeros(width, total - piece.shape[-1])], -1) if summed else piece)
    k = sum(pieces) if c.get("scales") == "summed" else torch.cat(pieces, -1)
    assert k.shape[-1] == total
    if power:
        k = k * (torch.arange(total) + 1.0) ** -w["kernel.decay"][:, None]
    return k / w["kernel.norm"][direction][:, None]


def sgconv(w, x, mask, c):
    u = x if mask is None else x * mask[..., None]
    length = u.shape[1]
    out = [w["D"] * u[:, t] for t in range(length)]
    behind = kernel(w, c, 0)
    for t in range(length):
        for m in range(min(t + 1, behind.shape[-1])):
            out[t] = out[t] + behind[:, m] * u[:, t - m]
    if not c["causal"]:
        ahead = kernel(w, c, 1)  # its tap 0 belongs to the next position
        for t in range(length):
            for m in range(min(length - t - 1, ahead.shape[-1])):
                out[t] = out[t] + ahead[:, m] * u[:, t + 1 + m]
    y = F.gelu(torch.stack(out, 1)) @ w["output.weight"].T + w["output.bias"]
    if not c.get("glu"):
        return y
    a, b = y.chunk(2, -1)
    return a * torch.sigmoid(b)


def make(c, batch, length, lengths, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    d, directions = c["width"], 1 if c["causal"] else 2
    w = {
        "D": normal(d),
        "kernel.weight": normal(directions, scales(c), d, c["kernel_dim"]),
        "output.weight": normal((2 if c.get("glu") else 1) * d, d) / math.sqrt(d),
        "output.bias": 0.2 * normal((2 if c.get("glu") else 1) * d),
    }
    if c.get("decay") == "power":
        w["kernel.decay"] = 0.5 + torch.rand(d, generator=generator)
    w = {name: value.float().double().requires_grad_() for name, value in w.items()}
    norm = (2 + torch.rand(directions, d, generator=generator)).float().double()
    x = normal(batch, length, d).float().double().requires_grad_()
    grad_y = normal(batch, length, d).float().double()
    tensors = {"x": x, "grad_y": grad_y, "weight.kernel.norm": norm} | {"weight." + n: v for n, v in w.items()}
    mask = None
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
        grad_y *= mask[..., None]
    y = sgconv(w | {"kernel.norm": norm}, x, mask, c)
    names = list(w)
    gradients = torch.autograd.grad(y, [x] + [w[n] for n in names], grad_y)
    expected = {"y": y if mask is None else y * mask[..., None], "grad_x": gradients[0]}
    expected |= {"grad." + n: g for n, g in zip(names, gradients[1:])}
    tensors |= {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


# name: (configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "causal": ({"width": 6, "causal": True, "kernel_dim": 4, "length": 27}, 2, 27, None, BOTH),
    "bidirectional": (
        {"width": 5, "causal": False, "kernel_dim": 4, "length": 30, "interpolation": "nearest", "glu": True}, 2, 21, [21, 8], PARALLEL),
    "summed_power": (
        {"width": 4, "causal": True, "kernel_dim": 3, "length": 40, "scales": "summed", "decay": "power"}, 1, 33, None, BOTH),
    # A range of decays; more positions than taps.
    "longer": (
        {"width": 4, "causal": True, "kernel_dim": 4, "length": 16, "decay_min": 1, "decay_max": 2}, 2, 37, None, BOTH),
}


if __name__ == "__main__":
    save_all("sgconv", CASES, make)
