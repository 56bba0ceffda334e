"""Normalised kernel attention with a relative bias in the paper's form: the products of features and values of all tokens, multiplied
by the circulant that embeds the Toeplitz matrix by torch.fft of 2L (Luo et al. 2021, section 3.1 and algorithm 1), causal."""

import math

import torch
from mixers import gla

LENGTHS = (1024, 4096, 16384)  # at 64k the products, their spectra and what differentiation keeps take some 25 GB


def toeplitz(q, k, v, past):
    """Features [B, H, L, m], values [B, H, L, d], e^bias by distance [H, L]; causal."""
    length = v.shape[2]
    values = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    products = torch.einsum("bhlm,bhld->bhmdl", k, values)
    weights = torch.fft.rfft(past, n=2 * length)[:, None, None]
    sums = torch.fft.irfft(torch.fft.rfft(products, n=2 * length) * weights, n=2 * length)[..., :length]
    y = torch.einsum("bhlm,bhmdl->bhld", q, sums)
    return y[..., :-1] / y[..., -1:]


class NormalizedKernelAttention(torch.nn.Module):
    def __init__(self, width, heads, length, features=16):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.output = torch.nn.Linear(width, width, bias=False)
        self.bias = torch.nn.Parameter(torch.zeros(heads, length))
        self.register_buffer("directions", torch.randn(heads, features, width // heads))

    def features(self, x):
        x = torch.nn.functional.normalize(x, dim=-1)
        return torch.exp(x @ self.directions.mT - 0.5) / math.sqrt(self.directions.shape[1])

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = toeplitz(self.features(q), self.features(k), v, self.bias[:, :length].exp())
        return self.output(y.transpose(1, 2).reshape(x.shape))


def layer(width, heads, length):
    return NormalizedKernelAttention(width, heads, length)


def operator(width, heads, length):
    q, k = (torch.randn(1, length, heads, 16).transpose(1, 2).exp() for _ in range(2))
    return [q, k, *gla.heads_of(width, heads, length, 1), (torch.randn(heads, length) * 0.1).exp()], toeplitz
