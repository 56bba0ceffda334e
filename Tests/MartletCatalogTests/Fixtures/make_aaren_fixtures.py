"""Aaren (Feng et al. 2024, "Attention as an RNN") written down from its equations in plain PyTorch (float64): every output is a softmax
over the tokens up to its own, with the query that is a parameter.

Run it to make the fixtures beside it:  python make_aaren_fixtures.py
"""

import math

import torch

from make_mixer_fixtures import heads_of, join, save_all, BOTH, PARALLEL


def aaren(w, x, mask, c):
    heads = c["heads"]

    def linear(name, y):
        y = y @ w[name + ".weight"].T
        return y + w[name + ".bias"] if c.get("bias") else y

    q = linear("query", w["query_token"]).reshape(heads, -1)  # [H, d]
    k, v = heads_of(linear("key", x), heads), heads_of(linear("value", x), heads)
    outputs = []
    for t in range(x.shape[1]):
        scores = torch.einsum("hd,bhjd->bhj", q, k[:, :, : t + 1]) / math.sqrt(q.shape[-1])
        weights = scores.exp()
        if mask is not None:
            weights = weights * mask[:, None, : t + 1]
        outputs.append(torch.einsum("bhj,bhjd->bhd", weights / weights.sum(-1, keepdim=True), v[:, :, : t + 1]))
    return linear("output", join(torch.stack(outputs, 2)))


def make(c, batch, length, lengths, seed, size, differentiates):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).float().double()

    d = c["width"]
    w = {"query_token": size * normal(d)}
    for name in ("query", "key", "value", "output"):
        w[name + ".weight"] = normal(d, d) / 2 ** round(math.log2(d) / 2)  # a power of two keeps the numbers those of float32
        if c.get("bias"):
            w[name + ".bias"] = normal(d) / 4
    w = {n: v.requires_grad_() for n, v in w.items()}
    x, grad_y = normal(batch, length, d).requires_grad_(), normal(batch, length, d)
    tensors = {"x": x} | {"weight." + n: v for n, v in w.items()}
    mask = None
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
        grad_y *= mask[..., None]
    y = aaren(w, x, mask, c)
    expected = {"y": y if mask is None else y * mask[..., None]}
    if differentiates:
        tensors["grad_y"] = grad_y
        gradients = torch.autograd.grad(y, [x, *w.values()], grad_y)
        expected |= {"grad_x": gradients[0]} | {"grad." + n: g for n, g in zip(w, gradients[1:])}
    tensors |= {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


# name: (configuration, batch, length, lengths of the padded sequences, modes, size of the query, with gradients)
CASES = {
    "causal": ({"width": 16, "heads": 2, "causal": True}, 2, 37, None, BOTH, 1.0, True),
    "sharp": ({"width": 8, "heads": 1, "causal": True}, 1, 70, None, BOTH, 8.0, True),
    "masked": ({"width": 8, "heads": 2, "causal": True}, 2, 19, [6, 19], PARALLEL, 2.0, True),
    "one_token": ({"width": 8, "heads": 4, "causal": True}, 3, 1, None, BOTH, 1.0, False),
    # The key's bias changes nothing: its gradient is 0, which nothing can be compared with in relative terms.
    "bias": ({"width": 8, "heads": 2, "causal": True, "bias": True}, 2, 21, None, BOTH, 2.0, False),
}


if __name__ == "__main__":
    save_all("aaren", CASES, make)
