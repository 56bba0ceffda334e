"""NormAttention (TransNormer, Qin et al. 2022): unnormalised causal linear attention in chunks, every product a matmul over all chunks at
once and one cumulative sum of the chunks' states, with 1 + elu features, Householder and learned rotation on queries and keys, and the
RMS norm without parameters on the output. The authors' own code takes the whole L x L product when causal."""

import torch
import torch.nn.functional as F
from mixers import gla
from mixers.diagonal_attention import LRPE

CHUNK = 64


def scan(q, k, v):
    """Unnormalised, causal; [B, H, L, d]."""
    q, k, v = (y.unflatten(2, (-1, CHUNK)) for y in (q, k, v))
    updates = k.transpose(-1, -2) @ v
    before = updates.cumsum(2) - updates
    return ((q @ k.transpose(-1, -2)).tril() @ v + q @ before).flatten(2, 3)


class NormAttention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width) for _ in range(4))
        self.positions = LRPE(width // heads)

    def forward(self, x):
        batch, length, width = x.shape
        split = lambda y: y.view(batch, length, self.heads, -1).transpose(1, 2)
        q, k = (self.positions(F.elu(split(f(x))) + 1) for f in (self.query, self.key))
        o = scan(q, k, split(self.value(x))).transpose(1, 2).reshape(x.shape)
        o = o / (o.norm(dim=-1, keepdim=True) * width**-0.5 + 1e-8)
        return self.output(o)


def layer(width, heads, length):
    return NormAttention(width, heads)


PUBLISHED_LENGTHS = (1024, 4096)


def published(width, heads, length):
    return gla.heads_of(width, heads, length, 3), lambda q, k, v: (q @ k.transpose(-1, -2)).tril() @ v


def operator(width, heads, length):
    return gla.heads_of(width, heads, length, 3), scan
