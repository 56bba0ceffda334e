"""DeltaNet as a PyTorch layer: the chunked WY form of flash-linear-attention's reference (fla/ops/delta_rule/naive.py), with the
triangular solve in place of its loop over rows and `unbind` in place of its indices (whose gradient takes time quadratic in the length),
and the layer's short convolutions, unit keys and norm."""

import torch
import torch.nn.functional as F
from mixers import gla

CHUNK = 64


def unit(x):
    return x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt()


def delta_rule(q, k, v, beta):
    """q, k, v [B, H, L, d], beta [B, H, L]; L a multiple of the chunk."""
    batch, heads, length, width = q.shape
    q = q * width**-0.5
    v, scaled = v * beta.unsqueeze(-1), k * beta.unsqueeze(-1)
    q, k, v, scaled = (x.reshape(batch, heads, -1, CHUNK, x.shape[-1]) for x in (q, k, v, scaled))
    system = (scaled @ k.transpose(-1, -2)).tril(-1)
    solved = torch.linalg.solve_triangular(system, torch.cat([scaled, v], -1), upper=False, unitriangular=True)
    w, u = solved.split([width, v.shape[-1]], -1)
    scores = (q @ k.transpose(-1, -2)).tril()
    state = q.new_zeros(batch, heads, width, v.shape[-1])
    outputs = []
    for q, k, u, w, scores in zip(*(x.unbind(2) for x in (q, k, u, w, scores))):
        change = u - w @ state
        outputs.append(q @ state + scores @ change)
        state = state + k.transpose(-1, -2) @ change
    return torch.stack(outputs, 2).reshape(batch, heads, length, -1)


class DeltaNet(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        linear = lambda columns: torch.nn.Linear(width, columns, bias=False)
        self.query, self.key, self.value, self.output = (linear(width) for _ in range(4))
        self.rate = linear(heads)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(width, width, 4, padding=3, groups=width, bias=False) for _ in range(3)
        )
        self.norm = torch.nn.RMSNorm(width // heads, eps=1e-5)

    def forward(self, x):
        batch, length, width = x.shape
        parts = []
        for projection, convolution in zip((self.query, self.key, self.value), self.convolutions):
            y = F.silu(convolution(projection(x).transpose(1, 2))[..., :length]).transpose(1, 2)
            parts.append(y.reshape(batch, length, self.heads, -1).transpose(1, 2))
        q, k, v = parts
        o = delta_rule(unit(q), unit(k), v, self.rate(x).sigmoid().transpose(1, 2))
        return self.output(self.norm(o).transpose(1, 2).reshape(x.shape))


def layer(width, heads, length):
    return DeltaNet(width, heads)


def operator(width, heads, length):
    q, k, v = gla.heads_of(width, heads, length, 3)
    return [unit(q), unit(k), v, torch.rand(1, heads, length)], delta_rule
