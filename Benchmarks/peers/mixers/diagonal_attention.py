"""DiagAttention (TransNormer, Qin et al. 2022) as the authors' code computes it: queries and keys cut in blocks of 64, the scores of all
blocks in one product, masked, softmax, and the product with the values; Householder and learned rotation on queries and keys."""

import torch
import torch.nn.functional as F

BLOCK = 64


class LRPE(torch.nn.Module):
    """A fixed reflection, then neighbouring channels turned by t theta."""

    def __init__(self, width):
        super().__init__()
        self.theta = torch.nn.Parameter(10000 ** (-2 / width * torch.arange(width // 2)))
        self.register_buffer("direction", F.normalize(torch.randn(width), dim=0))

    def forward(self, x):
        x = x - 2 * (x @ self.direction).unsqueeze(-1) * self.direction
        angle = torch.arange(x.shape[-2]).unsqueeze(-1) * self.theta
        cosine, sine = (y.repeat_interleave(2, -1) for y in (angle.cos(), angle.sin()))
        half = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cosine + half * sine


def attend(q, k, v):
    """Softmax inside blocks; [B, H, L, d]."""
    q, k, v = (y.unflatten(2, (-1, BLOCK)) for y in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    future = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -float("inf")).softmax(-1) @ v).flatten(2, 3)


class DiagonalAttention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width) for _ in range(4))
        self.positions = LRPE(width // heads)

    def forward(self, x):
        batch, length, width = x.shape
        split = lambda y: y.view(batch, length, self.heads, -1).transpose(1, 2)
        q, k = (self.positions(split(f(x))) for f in (self.query, self.key))
        return self.output(attend(q, k, split(self.value(x))).transpose(1, 2).reshape(x.shape))


def layer(width, heads, length):
    return DiagonalAttention(width, heads)
