"""Retention: gated linear attention's layer with a constant decay per head and rotary queries and keys, by chunks of 64."""

import torch
from gated_linear_attention import chunked_scalar
from mixers import gla, softmax


class Retention(gla.GatedLinearAttention):
    def make_gate(self, width):
        decay = torch.log1p(-torch.pow(2.0, -5 - torch.arange(self.heads, dtype=torch.float64))).float()
        self.register_buffer("decay", decay, persistent=False)

    def scan(self, x, q, k, v):
        gate = self.decay[None, :, None].expand(q.shape[:3])
        return chunked_scalar(softmax.rotate(q), softmax.rotate(k), v, gate, q.shape[-1] ** -0.5)


def layer(width, heads, length):
    return Retention(width, heads)
