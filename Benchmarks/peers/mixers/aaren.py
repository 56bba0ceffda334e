"""Aaren (Feng et al. 2024) as its paper gives it: the scan of Hillis & Steele over the triples (m, u, w), log2 L rounds of whole-tensor
operations, each head's query a parameter. The maxima don't take part in the gradient (they cancel), so no round keeps its tensors."""

import torch
from mixers import gla


def combine(a, b):
    m = torch.maximum(a[0], b[0])
    ea, eb = (a[0] - m).exp(), (b[0] - m).exp()
    return m, a[1] * ea + b[1] * eb, a[2] * ea.unsqueeze(-1) + b[2] * eb.unsqueeze(-1)


def scan(scores, value):
    """scores [B, H, L], value [B, H, L, d] -> the softmax average of every prefix."""
    m = scores.detach()
    u = (scores - m).exp()
    sums = (m, u, u.unsqueeze(-1) * value)
    distance = 1
    while distance < scores.shape[-1]:
        joined = combine([x[:, :, :-distance] for x in sums], [x[:, :, distance:] for x in sums])
        sums = [torch.cat([x[:, :, :distance], y], 2) for x, y in zip(sums, joined)]
        distance *= 2
    return sums[2] / sums[1].unsqueeze(-1)


class Aaren(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query_token = torch.nn.Parameter(torch.randn(width))
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x):
        batch, length, width = x.shape
        split = lambda y: y.view(batch, length, self.heads, -1).transpose(1, 2)
        q = self.query(self.query_token).view(self.heads, 1, -1)
        k, v = split(self.key(x)), split(self.value(x))
        scores = (q * k).sum(-1) * (width // self.heads) ** -0.5
        return self.output(scan(scores, v).transpose(1, 2).reshape(x.shape))


def layer(width, heads, length):
    return Aaren(width, heads)


def operator(width, heads, length):
    return [torch.randn(1, heads, length), *gla.heads_of(width, heads, length, 1)], scan
