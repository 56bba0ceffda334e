"""Linear attention with one data-dependent decay per head (Mamba-2's form) in the layer of gated linear attention, by chunks of 64."""

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from gated_linear_attention import chunked_scalar

_spec = importlib.util.spec_from_file_location("mixers_gla_form", Path(__file__).with_name("gla.py"))
_gla = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_gla)


class ScalarGate(_gla.GatedLinearAttention):
    def make_gate(self, width):
        self.gate_out = torch.nn.Linear(width, self.heads)

    def scan(self, x, q, k, v):
        gate = (F.logsigmoid(self.gate_out(x)) / 16).transpose(1, 2)
        return chunked_scalar(q, k, v, gate, q.shape[-1] ** -0.5)


def layer(width, heads, length):
    return ScalarGate(width, heads)
