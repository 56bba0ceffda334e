"""LoLCATs' hybrid attention (Zhang et al. 2024, arXiv 2410.10254) in linear time: the public code's sum of a softmax over the last 64 keys
and of linear attention to what stands before them (linear_window_attention_sw_linear.py), by blocks of 64 queries: the keys from a
block's first window on are one matrix of weights, all older ones are in running sums. float32, Martlet's default options."""

import torch
import torch.nn.functional as F
from mixers import gla


def rotate(x):
    d, length = x.shape[-1], x.shape[-2]
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, d, 2) / d)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, fq, fk, factor, w=64):
    """[B, H, L, .], and the weight of the window [H]."""
    batch, heads, length = q.shape[:3]
    n = -(-length // w)  # blocks, the last one padded
    blocks = lambda y: F.pad(y, (0, 0, 0, n * w - length)).view(batch, heads, n, w, -1)
    # Keys of the own block and the one before: [B, H, n, 2 w, .]
    both = lambda y: torch.cat([F.pad(y, (0, 0, 0, 0, 1, 0))[:, :, :-1], y], 3)
    q, k, v, fq, fk = (blocks(y) for y in (q, k, v, fq, fk))
    k2, v2, fk2 = both(k), both(v), both(fk)
    i = torch.arange(w)[:, None] + w
    j = torch.arange(2 * w)
    inside = (j <= i) & (j > i - w)
    before = j <= i - w
    # The first block has none before it.
    exists = (torch.arange(n)[:, None, None] > 0) | (j >= w)
    scores = (q @ k2.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~(inside & exists), -1e8)
    soft = factor[None, :, None, None, None] * torch.exp(scores - scores.amax(-1, keepdim=True)) * inside
    linear = (fq @ fk2.transpose(-1, -2)) * (before & exists)
    weights = soft + linear
    # What stands two blocks back and more is in the sums.
    sums = (fk.transpose(-1, -2) @ v).cumsum(2)
    normalizer = fk.sum(3, keepdim=True).cumsum(2)
    delayed = lambda y: F.pad(y, (0, 0, 0, 0, 2, 0))[:, :, :n]
    top = weights @ v2 + fq @ delayed(sums)
    bottom = weights.sum(-1, keepdim=True) + (fq * delayed(normalizer)).sum(-1, keepdim=True)
    return (top / bottom).view(batch, heads, n * w, -1)[:, :, :length]


def attend_by_all_pairs(q, k, v, fq, fk, factor, w=64):
    """What the public code trains with (hybrid_attention_quadratic): both attentions as L x L weights."""
    length = q.shape[2]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    near, far = (distance >= 0) & (distance < w), distance >= w
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~near, -1e8)
    soft = factor[:, None, None] * torch.exp(scores - scores.amax(-1, keepdim=True))
    linear = (fq @ fk.transpose(-1, -2)).masked_fill(~far, 0)
    bottom = soft.sum(-1, keepdim=True) + linear.sum(-1, keepdim=True)
    return (soft + linear) @ v / bottom


class Hybrid(torch.nn.Module):
    def __init__(self, width, heads, window=64):
        super().__init__()
        self.heads, self.window = heads, window
        d = width // heads
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width, bias=False) for _ in range(4))
        self.query_map, self.key_map = (torch.nn.Parameter(torch.empty(heads, d, d // 2)) for _ in range(2))
        for weight in (self.query_map, self.key_map):
            torch.nn.init.kaiming_uniform_(weight)
        self.window_factor = torch.nn.Parameter(torch.full((heads,), -2.197))

    @staticmethod
    def features(x, weight):
        y = torch.einsum("hdf,bhld->bhlf", weight, x)
        return torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1).clamp(min=1e-12)

    def forward(self, x):
        batch, length, width = x.shape
        w, heads = self.window, self.heads
        split = lambda y: y.view(batch, length, heads, -1).transpose(1, 2)
        q, k, v = rotate(split(self.query(x))), rotate(split(self.key(x))), split(self.value(x))
        fq, fk = self.features(q, self.query_map), self.features(k, self.key_map)
        o = attend(q, k, v, fq, fk, torch.sigmoid(self.window_factor), w)
        return self.output(o.transpose(1, 2).reshape(x.shape))


def layer(width, heads, length):
    return Hybrid(width, heads)


def inputs(width, heads, length):
    q, k, v, a, b = gla.heads_of(width, heads, length, 5)
    return [q, k, v, a.softmax(-1), b.softmax(-1), torch.full((heads,), 0.1)]


def operator(width, heads, length):
    return inputs(width, heads, length), attend


PUBLISHED_LENGTHS = (1024, 4096)


def published(width, heads, length):
    return inputs(width, heads, length), attend_by_all_pairs
