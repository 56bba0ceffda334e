"""Causal softmax attention with rotary positions, on PyTorch's scaled_dot_product_attention."""

import torch
import torch.nn.functional as F


def rotate(x, base=10000.0):
    """Pairs (i, i + d/2) turned by position times base^(-2i/d). x [B, H, L, d]"""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * base ** (-torch.arange(half) / half)
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width, bias=False) for _ in range(4))

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x):
        q, k, v = (self.split(f(x)) for f in (self.query, self.key, self.value))
        return self.output(self.attend(rotate(q), rotate(k), v).transpose(1, 2).flatten(2))


def layer(width, heads, length):
    return Attention(width, heads)
