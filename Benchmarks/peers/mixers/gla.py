"""Gated linear attention as a layer: chunks of 64 with sub-chunks of 16, as in the authors' reference (see gated_linear_attention.py)."""

import torch
import torch.nn.functional as F
from gated_linear_attention import chunked


class GatedLinearAttention(torch.nn.Module):
    """Keys of half the width, an RMS norm on each head's output, a SiLU gate."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key = (torch.nn.Linear(width, width // 2, bias=False) for _ in range(2))
        self.value, self.output_gate, self.output = (torch.nn.Linear(width, width, bias=False) for _ in range(3))
        self.norm = torch.nn.RMSNorm(width // heads, eps=1e-5)
        self.make_gate(width)

    def make_gate(self, width):
        self.gate_in = torch.nn.Linear(width, 16, bias=False)
        self.gate_out = torch.nn.Linear(16, width // 2)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def scan(self, x, q, k, v):
        gate = self.split(F.logsigmoid(self.gate_out(self.gate_in(x))) / 16)
        return chunked(q, k, v, gate, q.shape[-1] ** -0.5)

    def forward(self, x):
        q, k, v = (self.split(f(x)) for f in (self.query, self.key, self.value))
        o = self.norm(self.scan(x, q, k, v)).transpose(1, 2).flatten(2)
        return self.output(o * F.silu(self.output_gate(x)))


def heads_of(width, heads, length, count):
    """As a layer has them: tokens one after another, their heads side by side, seen as [1, heads, length, width / heads]."""
    return [torch.randn(1, length, heads, width // heads).transpose(1, 2) for _ in range(count)]


def layer(width, heads, length):
    return GatedLinearAttention(width, heads)


def operator(width, heads, length):
    q, k, v, x = heads_of(width, heads, length, 4)
    return [q, k, v, F.logsigmoid(x) / 16], lambda q, k, v, g: chunked(q, k, v, g, q.shape[-1] ** -0.5)
