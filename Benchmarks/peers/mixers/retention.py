"""Retention: gated linear attention's layer with a constant decay per head and rotary queries and keys, by chunks of 64."""

import importlib.util
from pathlib import Path

import torch
from gated_linear_attention import chunked_scalar


def _form(name):
    spec = importlib.util.spec_from_file_location(f"mixers_{name}_form", Path(__file__).with_name(name + ".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_rotate = _form("softmax").rotate


class Retention(_form("gla").GatedLinearAttention):
    def make_gate(self, width):
        decay = torch.log1p(-torch.pow(2.0, -5 - torch.arange(self.heads, dtype=torch.float64))).float()
        self.register_buffer("decay", decay, persistent=False)

    def scan(self, x, q, k, v):
        gate = self.decay[None, :, None].expand(q.shape[:3])
        return chunked_scalar(_rotate(q), _rotate(k), v, gate, q.shape[-1] ** -0.5)


def layer(width, heads, length):
    return Retention(width, heads)
