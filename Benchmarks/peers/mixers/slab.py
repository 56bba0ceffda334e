"""Simplified linear attention as its authors' code computes it (arXiv 2405.11582): ReLU features, the cheaper association by einsum, and
one depthwise 5×5 convolution that every head runs as an image of its own."""

import torch


def attend(q, k, v):
    """[B H, L, d], queries and keys not negative."""
    length, width = q.shape[1:]
    z = 1 / (torch.einsum("bic,bc->bi", q, k.sum(1)) + 1e-6)
    if length > width:
        return torch.einsum("bic,bcd,bi->bid", q, torch.einsum("bjc,bjd->bcd", k, v), z)
    return torch.einsum("bij,bjd,bi->bid", torch.einsum("bic,bjc->bij", q, k), v, z)


def split(x, heads):
    batch, length, width = x.shape
    return x.view(batch, length, heads, -1).transpose(1, 2).reshape(batch * heads, length, -1)


def join(y, batch):
    """[B H, L, d] -> [B, L, H d]."""
    return y.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)


class Simplified(torch.nn.Module):
    def __init__(self, width, heads, length):
        super().__init__()
        self.heads = heads
        root = int(length**0.5)
        self.columns = next(c for c in range(root, length + 1) if c * c >= length and length % c == 0)
        head = width // heads
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.convolution = torch.nn.Conv2d(head, head, 5, padding=2, groups=head)
        self.positions = torch.nn.Parameter(torch.zeros(1, length, width))
        self.output = torch.nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, width).unbind(2)
        q, k, v = (split(y, self.heads) for y in (q.relu(), (k + self.positions).relu(), v))
        y = attend(q, k, v)
        image = v.transpose(1, 2).reshape(batch * self.heads, -1, length // self.columns, self.columns)
        y = y + self.convolution(image).flatten(2).transpose(1, 2)
        return self.output(join(y, batch))


def layer(width, heads, length):
    return Simplified(width, heads, length)


def operator(width, heads, length):
    """From tokens to tokens, as ours: the heads are split and joined inside."""
    inputs = [torch.randn(1, length, width) for _ in range(3)]
    return inputs, lambda q, k, v: join(attend(*(split(y, heads) for y in (q.relu(), k.relu(), v))), 1)
