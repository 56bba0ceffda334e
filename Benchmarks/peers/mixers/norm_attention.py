"""NormAttention (TransNormer, Qin et al. 2022): unnormalised causal linear attention in chunks, every product a matmul over all chunks at
once and one cumulative sum of the chunks' states, with 1 + elu features, Householder and learned rotation on queries and keys, and the
RMS norm without parameters on the output. The authors' own code takes the whole L x L product when causal."""

import torch
import torch.nn.functional as F

CHUNK = 64


class LRPE(torch.nn.Module):
    """A fixed reflection, then neighbouring channels turned by t theta."""

    def __init__(self, width):
        super().__init__()
        self.theta = torch.nn.Parameter(10000 ** (-2 / width * torch.arange(width // 2)))
        self.register_buffer("direction", F.normalize(torch.randn(width), dim=0))

    def forward(self, x):
        x = x - 2 * (x @ self.direction).unsqueeze(-1) * self.direction
        angle = torch.arange(x.shape[-2]).unsqueeze(-1) * self.theta
        cosine, sine = (y.repeat_interleave(2, -1) for y in (angle.cos(), angle.sin()))
        half = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cosine + half * sine


class NormAttention(torch.nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (torch.nn.Linear(width, width) for _ in range(4))
        self.positions = LRPE(width // heads)

    def forward(self, x):
        batch, length, width = x.shape
        split = lambda y: y.view(batch, length, self.heads, -1).transpose(1, 2)
        q, k = (self.positions(F.elu(split(f(x))) + 1) for f in (self.query, self.key))
        q, k, v = (y.unflatten(2, (-1, CHUNK)) for y in (q, k, split(self.value(x))))
        updates = k.transpose(-1, -2) @ v
        before = updates.cumsum(2) - updates
        o = (q @ k.transpose(-1, -2)).tril() @ v + q @ before
        o = o.flatten(2, 3).transpose(1, 2).reshape(x.shape)
        o = o / (o.norm(dim=-1, keepdim=True) * width**-0.5 + 1e-8)
        return self.output(o)


def layer(width, heads, length):
    return NormAttention(width, heads)
