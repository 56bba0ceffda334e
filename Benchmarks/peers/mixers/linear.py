"""Linear attention with elu + 1 features, by chunks of 64 (see gated_linear_attention.py)."""

import torch
import torch.nn.functional as F
from gated_linear_attention import chunked_normalised
from mixers import gla


class LinearAttention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width, bias=False) for _ in range(4))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x):
        q, k, v = (self.split(f(x)) for f in (self.query, self.key, self.value))
        return self.output(chunked_normalised(F.elu(q) + 1, F.elu(k) + 1, v).transpose(1, 2).flatten(2))


def layer(width, heads, length):
    return LinearAttention(width, heads)


def operator(width, heads, length):
    q, k, v = gla.heads_of(width, heads, length, 3)
    return [F.elu(q) + 1, F.elu(k) + 1, v], chunked_normalised
