"""PyTorch's forms of gated linear attention and of normalised linear attention, as one would write them without a kernel.

CASES maps a name to a setup function; it returns the thunk to be timed. Inputs have the layout of a layer: [B, L, H, d] seen
as [B, H, L, d]. Forms:

- `recurrence`: token by token, the definition.
- `chunked`: chunks of 64 with exponents relative to sub-chunks of 16 (so that none is positive), every product an einsum or
  matmul over all chunks at once, and a loop over chunks for the state. The fair peer: what a careful PyTorch user runs.
- `unsafe`: chunks with e^{-b} on the keys, which overflows under strong gates. The fastest PyTorch form where it holds.
- `cumulative` (normalised, causal): prefix sums of k'v, as the formula reads; memory L dk dv. `chunked_normalised`: chunks.
"""

import torch

BATCH, HEADS, DK, DV = 1, 4, 64, 64


def recurrence(q, k, v, g, scale):
    batch, heads, length, dk = q.shape
    state = q.new_zeros(batch, heads, dk, v.shape[-1])
    decay = g.exp()
    outputs = []
    for t in range(length):
        state = decay[:, :, t, :, None] * state + k[:, :, t, :, None] * v[:, :, t, None, :]
        outputs.append(torch.einsum("bhd,bhdv->bhv", q[:, :, t] * scale, state))
    return torch.stack(outputs, 2)


def chunked(q, k, v, g, scale, chunk=64, sub=16):
    """Per-channel gates g [B, H, L, dk] <= 0; L must be a multiple of `chunk`."""
    batch, heads, length, dk = q.shape
    n, m = length // chunk, chunk // sub
    q, k, v, g = (x.reshape(batch, heads, n, chunk, -1) for x in (q * scale, k, v, g))
    b = g.cumsum(3)
    last = b[:, :, :, -1:]
    inside = b.view(batch, heads, n, m, sub, dk)
    # The reference row of a sub-chunk: the sum just before it.
    before = torch.cat([torch.zeros_like(inside[:, :, :, :1, -1]), inside[:, :, :, :-1, -1]], 3)
    qs, ks = (x.view(batch, heads, n, m, sub, dk) for x in (q, k))
    scaled_q = qs * (inside - before.unsqueeze(4)).exp()
    rows = []
    within = torch.ones(sub, sub, dtype=torch.bool, device=q.device).tril()
    for i in range(m):
        blocks = []
        if i:
            keys = k[:, :, :, : i * sub] * (before[:, :, :, i : i + 1] - b[:, :, :, : i * sub]).exp()
            blocks.append(scaled_q[:, :, :, i] @ keys.transpose(-1, -2))
        gap = inside[:, :, :, i, :, None] - inside[:, :, :, i, None, :]
        gap = gap.masked_fill(~within[:, :, None], -float("inf"))
        blocks.append(torch.einsum("bhnid,bhnjd,bhnijd->bhnij", qs[:, :, :, i], ks[:, :, :, i], gap.exp()))
        if i < m - 1:
            blocks.append(q.new_zeros(batch, heads, n, sub, chunk - (i + 1) * sub))
        rows.append(torch.cat(blocks, -1))
    weights = torch.cat(rows, 3)
    updates = (k * (last - b).exp()).transpose(-1, -2) @ v
    decay = last.exp().transpose(-1, -2)
    state = torch.zeros_like(updates[:, :, 0])
    states = []
    # `unbind`, whose gradient is one stack: that of an index would be a tensor of zeros as large as all chunks for each of them.
    for factor, update in zip(decay.unbind(2), updates.unbind(2)):
        states.append(state)
        state = factor * state + update
    output = weights @ v + (q * b.exp()) @ torch.stack(states, 2)
    return output.view(batch, heads, length, -1)


def chunked_unsafe(q, k, v, g, scale, chunk=64):
    """The same with e^{-b} on the keys: one product a chunk instead of ten, inf as soon as a chunk decays below e^-88."""
    batch, heads, length, dk = q.shape
    n = length // chunk
    q, k, v, g = (x.reshape(batch, heads, n, chunk, -1) for x in (q * scale, k, v, g))
    b = g.cumsum(3)
    q, inverse = q * b.exp(), k * (-b).exp()
    weights = (q @ inverse.transpose(-1, -2)).tril()
    decay = b[:, :, :, -1:].exp().transpose(-1, -2)
    updates = inverse.transpose(-1, -2) @ v
    state = torch.zeros_like(updates[:, :, 0])
    states = []
    for factor, update in zip(decay.unbind(2), updates.unbind(2)):
        states.append(state)
        state = factor * (state + update)
    output = weights @ v + q @ torch.stack(states, 2)
    return output.view(batch, heads, length, -1)


def chunked_scalar(q, k, v, g, scale, chunk=64):
    """One gate a token and head, g [B, H, L] <= 0 (or zeros: plain linear attention)."""
    batch, heads, length, dk = q.shape
    n = length // chunk
    q, k, v = (x.reshape(batch, heads, n, chunk, -1) for x in (q * scale, k, v))
    b = g.reshape(batch, heads, n, chunk).cumsum(-1)
    mask = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    decay = (b[..., :, None] - b[..., None, :]).masked_fill(~mask, -float("inf")).exp()
    weights = (q @ k.transpose(-1, -2)) * decay
    last = b[..., -1:]
    updates = (k * (last - b).exp().unsqueeze(-1)).transpose(-1, -2) @ v
    state = torch.zeros_like(updates[:, :, 0])
    states = []
    for factor, update in zip(last.unsqueeze(-1).exp().unbind(2), updates.unbind(2)):
        states.append(state)
        state = factor * state + update
    output = weights @ v + (q * b.exp().unsqueeze(-1)) @ torch.stack(states, 2)
    return output.view(batch, heads, length, -1)


def cumulative_normalised(q, k, v, eps=1e-6):
    states = torch.einsum("bhld,bhlv->bhldv", k, v).cumsum(2)
    top = torch.einsum("bhld,bhldv->bhlv", q, states)
    return top / ((q * k.cumsum(2)).sum(-1, keepdim=True) + eps)


def chunked_normalised(q, k, v, eps=1e-6, chunk=64):
    batch, heads, length, _ = q.shape
    n = length // chunk
    bottom = (q * k.cumsum(2)).sum(-1, keepdim=True) + eps
    q, k, v = (x.reshape(batch, heads, n, chunk, -1) for x in (q, k, v))
    updates = k.transpose(-1, -2) @ v
    states = updates.cumsum(2) - updates
    top = (q @ k.transpose(-1, -2)).tril() @ v + q @ states
    return top.view(batch, heads, length, -1) / bottom


def bidirectional_normalised(q, k, v, eps=1e-6):
    return (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(2, keepdim=True).transpose(-1, -2) + eps)


def inputs(length, gate, positive=False, seed=0, dk=DK, dv=DV, heads=HEADS, batch=BATCH):
    generator = torch.Generator().manual_seed(seed)

    def draw(width):
        return torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)

    q, k, v = draw(dk), draw(dk), draw(dv)
    if positive:
        q, k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    tensors = [q, k, v]
    if gate == "channel":  # logsigmoid(x) / 16, as the layer has it
        tensors.append(torch.nn.functional.logsigmoid(draw(dk)) / 16)
    elif gate == "token":
        tensors.append(torch.nn.functional.logsigmoid(draw(1)).squeeze(-1) / 16)
    return [x.requires_grad_() for x in tensors], draw(dv)


def timed(form, tensors, gradient, backward, *extra):
    def forward():
        with torch.no_grad():
            return form(*tensors, *extra)

    def both():
        for x in tensors:
            x.grad = None
        form(*tensors, *extra).backward(gradient)

    return both if backward else forward


def case(form, length, gate, backward, positive=False, extra=(DK**-0.5,)):
    def setup():
        tensors, gradient = inputs(length, gate, positive)
        return timed(form, tensors, gradient, backward, *extra)

    return setup


def linear(q, k, v, scale):
    return chunked_scalar(q, k, v, q.new_zeros(q.shape[:3]), scale)


CASES = {}
for _length in (1024, 4096, 16384, 65536):
    for _backward in (False, True):
        _suffix = f"L{_length} {'forward+backward' if _backward else 'forward'}"
        if _length <= 4096:
            CASES[f"gla recurrence {_suffix}"] = case(recurrence, _length, "channel", _backward)
            CASES[f"normalised cumulative {_suffix}"] = case(cumulative_normalised, _length, None, _backward, True, ())
        CASES[f"gla chunked {_suffix}"] = case(chunked, _length, "channel", _backward)
        CASES[f"gla unsafe {_suffix}"] = case(chunked_unsafe, _length, "channel", _backward)
        CASES[f"scalar chunked {_suffix}"] = case(chunked_scalar, _length, "token", _backward)
        CASES[f"linear chunked {_suffix}"] = case(linear, _length, None, _backward)
        CASES[f"normalised chunked {_suffix}"] = case(chunked_normalised, _length, None, _backward, True, ())
        CASES[f"normalised bidirectional {_suffix}"] = case(bidirectional_normalised, _length, None, _backward, True, ())
