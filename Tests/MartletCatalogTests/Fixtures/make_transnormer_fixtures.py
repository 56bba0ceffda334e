"""The two attention layers of TransNormer (Qin et al. 2022) written down from their equations in plain PyTorch (float64):
NormAttention as a recurrence, token by token, DiagAttention as the sum over the tokens of a block.

Run it to make the fixtures beside it:  python make_transnormer_fixtures.py
"""

import math

import torch
import torch.nn.functional as F

from make_mixer_fixtures import heads_of, join, save_all, BOTH, PARALLEL


def simple_rms(x):
    return x / (x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5 + 1e-8)


def lrpe(x, w):
    """A Householder reflection, then the pairs (2i, 2i+1) turned by t theta_i. x [B, H, L, d]"""
    theta, u = w["positions.theta"], w["positions.direction"]
    x = x - 2 * (x * u).sum(-1, keepdim=True) * u
    columns = []
    for i in range(x.shape[-1] // 2):
        angle = torch.arange(x.shape[2]) * theta[i]
        a, b = x[..., 2 * i], x[..., 2 * i + 1]
        columns += [a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]
    return torch.stack(columns, -1)


def projections(w, x, heads):
    return tuple(heads_of(x @ w[n + ".weight"].T + w[n + ".bias"], heads) for n in ("query", "key", "value"))


def norm_attention(w, x, mask, c):
    q, k, v = projections(w, x, c["heads"])
    feature = F.elu if c["form"] == "t1" else lambda y: F.elu(y) + 1
    q, k = feature(q), feature(k)
    if c["positions"] == "lrpe":
        q, k = lrpe(q, w), lrpe(k, w)
    if mask is not None:
        k = k * mask[:, None, :, None]
    state = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    states = []
    for t in range(x.shape[1]):
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
        states.append(state)
    if not c["causal"]:
        states = [state] * x.shape[1]
    o = torch.stack([torch.einsum("bhk,bhkv->bhv", q[:, :, t], states[t]) for t in range(x.shape[1])], 2)
    return simple_rms(join(o)) @ w["output.weight"].T + w["output.bias"]


def diagonal_attention(w, x, mask, c):
    q, k, v = projections(w, x, c["heads"])
    if c["positions"] == "lrpe":
        q, k = lrpe(q, w), lrpe(k, w)
    length, block = x.shape[1], c["block"]
    outputs = []
    for t in range(length):
        start = t // block * block
        end = t + 1 if c["causal"] else min(length, start + block)
        scores = torch.einsum("bhd,bhjd->bhj", q[:, :, t], k[:, :, start:end]) / math.sqrt(q.shape[-1])
        weights = scores.exp() if c["form"] == "t2" else scores.relu()
        if mask is not None:
            weights = weights * mask[:, None, start:end]
        if c["form"] == "t2":
            total = weights.sum(-1, keepdim=True)
            weights = weights / torch.where(total == 0, torch.ones_like(total), total)
        outputs.append(torch.einsum("bhj,bhjd->bhd", weights, v[:, :, start:end]))
    o = join(torch.stack(outputs, 2))
    if c["form"] == "t1":
        o = simple_rms(o)
    return o @ w["output.weight"].T + w["output.bias"]


def make(c, batch, length, lengths, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).float().double()

    d, width = c["width"], c["width"] // c["heads"]
    w = {}
    for name in ("query", "key", "value", "output"):
        w[name + ".weight"] = normal(d, d) / 2 ** round(math.log2(d) / 2)
        w[name + ".bias"] = normal(d) / 4
    if c["positions"] == "lrpe":
        frequencies = 10000 ** (-2 * torch.arange(width // 2) / width) * (1 + normal(width // 2) / 8)
        w["positions.theta"] = frequencies.float().double()
        w["positions.direction"] = F.normalize(normal(width), dim=0).float().double()
    trained = [n for n in w if n != "positions.direction"]
    for n in trained:
        w[n].requires_grad_()
    x, grad_y = normal(batch, length, d).requires_grad_(), normal(batch, length, d)
    tensors = {"x": x} | {"weight." + n: v for n, v in w.items()}
    mask = None
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
        grad_y *= mask[..., None]
    y = (norm_attention if c["layer"] == "norm" else diagonal_attention)(w, x, mask, c)
    expected = {"y": y if mask is None else y * mask[..., None]}
    # Softmax without positions: a bias on keys changes nothing, and its gradient of 0 can't be compared in relative terms.
    if not (c["layer"] == "diagonal" and c["form"] == "t2" and c["positions"] == "none"):
        tensors["grad_y"] = grad_y
        gradients = torch.autograd.grad(y, [x] + [w[n] for n in trained], grad_y)
        expected |= {"grad_x": gradients[0]} | {"grad." + n: g for n, g in zip(trained, gradients[1:])}
    tensors |= {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


def case(layer, width, heads, form="t2", positions="lrpe", causal=True, block=None):
    c = {"layer": layer, "width": width, "heads": heads, "form": form, "positions": positions, "causal": causal}
    return c if block is None else c | {"block": block}


# name: (configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "norm": (case("norm", 16, 2), 2, 37, None, BOTH),
    "norm_t1": (case("norm", 16, 2, form="t1"), 1, 33, None, BOTH),
    "norm_plain": (case("norm", 8, 1, positions="none"), 2, 18, None, BOTH),
    "norm_masked": (case("norm", 8, 2), 2, 21, [8, 21], PARALLEL),
    "norm_bidirectional": (case("norm", 8, 2, causal=False), 2, 22, [22, 9], PARALLEL),
    "norm_bidirectional_t1": (case("norm", 8, 2, form="t1", causal=False), 1, 17, None, PARALLEL),
    "diagonal": (case("diagonal", 16, 2, block=8), 2, 37, None, BOTH),
    "diagonal_t1": (case("diagonal", 16, 2, form="t1", block=8), 1, 29, None, BOTH),
    "diagonal_plain": (case("diagonal", 8, 1, positions="none", block=16), 2, 32, None, BOTH),
    "diagonal_short": (case("diagonal", 8, 2, block=64), 2, 13, None, BOTH),
    "diagonal_masked": (case("diagonal", 8, 2, block=8), 2, 27, [5, 27], PARALLEL),
    "diagonal_bidirectional": (case("diagonal", 8, 2, causal=False, block=8), 2, 29, [29, 12], PARALLEL),
    "diagonal_bidirectional_t1": (case("diagonal", 8, 2, form="t1", causal=False, block=4), 1, 19, None, PARALLEL),
}


if __name__ == "__main__":
    save_all("transnormer", CASES, make)
