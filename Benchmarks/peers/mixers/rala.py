"""Rank-augmented linear attention as its authors' code computes it (arXiv 2411.07635): on images [1, width, rows, columns], with
1×1 convolutions for the projections, a depthwise 5×5 convolution, and rotations whose tables are made beforehand."""

import torch
import torch.nn.functional as F
from mixers import gla


def every_two(x):
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def attend(q, k, v, sine, cosine):
    """[B, H, L, d], and the tables of the rotation [L, d]."""
    length = q.shape[2]
    q, k = F.elu(q) + 1, F.elu(k) + 1
    mean = q.mean(-2, keepdim=True)
    weights = torch.softmax(q.shape[-1] ** -0.5 * mean @ k.transpose(-1, -2), -1).transpose(-1, -2)
    k = k * weights * length
    turned_q = q * cosine + every_two(q) * sine
    turned_k = k * cosine + every_two(k) * sine
    z = 1 / (q @ k.mean(-2, keepdim=True).transpose(-2, -1) + 1e-6)
    memory = (turned_k.transpose(-2, -1) * length**-0.5) @ (v * length**-0.5)
    return turned_q @ memory * z


class RankAugmented(torch.nn.Module):
    def __init__(self, width, heads, length):
        super().__init__()
        self.heads = heads
        root = int(length**0.5)
        self.columns = next(c for c in range(root, length + 1) if c * c >= length and length % c == 0)
        self.rows = length // self.columns
        self.qkvo = torch.nn.Conv2d(width, 4 * width, 1)
        self.lepe = torch.nn.Conv2d(width, width, 5, 1, 2, groups=width)
        self.output = torch.nn.Conv2d(width, width, 1)
        angles = (10000.0 ** -torch.linspace(0, 1, width // heads // 4)).repeat_interleave(2)
        by_row = (torch.arange(self.rows)[:, None] * angles)[:, None].expand(-1, self.columns, -1)
        by_column = (torch.arange(self.columns)[:, None] * angles)[None].expand(self.rows, -1, -1)
        turn = torch.cat([by_row, by_column], -1).flatten(0, 1)
        self.register_buffer("sine", turn.sin(), persistent=False)
        self.register_buffer("cosine", turn.cos(), persistent=False)

    def forward(self, x):
        batch, length, width = x.shape
        image = x.transpose(1, 2).reshape(batch, width, self.rows, self.columns)
        qkvo = self.qkvo(image)
        gate, value = qkvo[:, 3 * width :], qkvo[:, 2 * width : 3 * width]
        local = self.lepe(value)
        q, k, v = qkvo[:, : 3 * width].reshape(batch, 3, self.heads, -1, length).permute(1, 0, 2, 4, 3)
        y = attend(q, k, v, self.sine, self.cosine).transpose(-1, -2).reshape(image.shape)
        return self.output((y + local) * gate).flatten(2).transpose(1, 2)


def layer(width, heads, length):
    return RankAugmented(width, heads, length)


def operator(width, heads, length):
    of = RankAugmented(width, heads, length)
    return gla.heads_of(width, heads, length, 3), lambda q, k, v: attend(q, k, v, of.sine, of.cosine)
