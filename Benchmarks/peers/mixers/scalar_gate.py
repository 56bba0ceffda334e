"""Linear attention with one data-dependent decay per head (Mamba-2's form) in the layer of gated linear attention, by chunks of 64."""

import torch
import torch.nn.functional as F
from gated_linear_attention import chunked_scalar
from mixers import gla


class ScalarGate(gla.GatedLinearAttention):
    def make_gate(self, width):
        self.gate_out = torch.nn.Linear(width, self.heads)

    def scan(self, x, q, k, v):
        gate = (F.logsigmoid(self.gate_out(x)) / 16).transpose(1, 2)
        return chunked_scalar(q, k, v, gate, q.shape[-1] ** -0.5)


def layer(width, heads, length):
    return ScalarGate(width, heads)


def operator(width, heads, length):
    q, k, v = gla.heads_of(width, heads, length, 3)
    gates = F.logsigmoid(torch.randn(1, heads, length)) / 16
    return [q, k, v, gates], lambda q, k, v, g: chunked_scalar(q, k, v, g, q.shape[-1] ** -0.5)
