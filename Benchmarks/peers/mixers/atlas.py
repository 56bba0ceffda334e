"""ATLAS's matrix memory in chunks, as a careful PyTorch user writes it (no official code is published): polynomial features by one
gather and product, coefficients and scores of all chunks at once, a loop over chunks for errors and memory alone, outputs of all
chunks at once from the memories that the loop left."""

import itertools
import math

import torch
import torch.nn.functional as F
from mixers import gla


def omega_rule(q, k, v, log_alpha, eta, gamma, memory, b):
    """Features [B, H, L, F], values, gates [B, H, L] and [B, H, L, c], first memory [H, F, dv]; chunks of b."""
    batch, heads, length, c = gamma.shape
    n = length // b
    log_alpha, eta = (y.reshape(batch, heads, n, b) for y in (log_alpha, eta))
    gamma = gamma.reshape(batch, heads, n, b, c)
    # The band of window gates, oldest first: row t begins at column t.
    band = F.pad(gamma.flip(-1), (0, b)).flatten(-2)[..., : b * (b + c - 1)].view(batch, heads, n, b, b + c - 1)
    sums = log_alpha.cumsum(-1)
    future = torch.ones(b, b, dtype=torch.bool).triu(1)
    decay = (sums[..., :, None] - sums[..., None, :]).masked_fill(future, -float("inf")).exp()
    weights = (decay * eta[..., None, :]) @ band  # [B, H, n, b, m]
    kept = sums.exp()
    keys, values = (F.pad(y, (0, 0, c - 1, 0)).unfold(2, b + c - 1, b).transpose(-1, -2) for y in (k, v))  # [B, H, n, m, d]
    queries = q.reshape(batch, heads, n, b, -1)
    scores = (queries @ keys.transpose(-1, -2)) * weights
    writes = (keys * weights[..., -1, :, None]).transpose(-1, -2)  # [B, H, n, F, m]
    memory = memory.expand(batch, -1, -1, -1)
    memories, errors = [], []
    for own, target, write, factor in zip(keys.unbind(2), values.unbind(2), writes.unbind(2), kept[..., -1, None, None].unbind(2)):
        memories.append(memory)
        errors.append(target - own @ memory)
        memory = memory * factor + write @ errors[-1]
    o = kept[..., None] * (queries @ torch.stack(memories, 2)) + scores @ torch.stack(errors, 2)
    return o.reshape(batch, heads, length, -1)


class Atlas(torch.nn.Module):
    def __init__(self, width, heads, key_width=12, window=4, chunk=8, kernel=4):
        super().__init__()
        self.heads, self.window, self.chunk, self.kernel = heads, window, chunk, kernel
        self.value_width = width // heads
        pairs = list(itertools.combinations_with_replacement(range(key_width), 2))
        self.register_buffer("left", torch.tensor([i for i, _ in pairs]), persistent=False)
        self.register_buffer("right", torch.tensor([j for _, j in pairs]), persistent=False)
        self.register_buffer("multiplicity", torch.tensor([1.0 if i == j else 2.0 for i, j in pairs]), persistent=False)
        features = 1 + key_width + len(pairs)
        linear = lambda to, bias=False: torch.nn.Linear(width, to, bias=bias)
        self.query, self.key, self.value = linear(heads * key_width), linear(heads * key_width), linear(width)
        self.retention, self.rate, self.window_gate = linear(heads, True), linear(heads, True), linear(heads * window, True)
        torch.nn.init.constant_(self.retention.bias, 3)
        self.coefficients = torch.nn.Parameter(torch.tensor([0.0, 0.0, -math.log(2)]))
        self.memory = torch.nn.Parameter(torch.zeros(heads, features, self.value_width))
        self.output_gate, self.output = linear(width), torch.nn.Linear(width, width, bias=False)
        self.norm = torch.nn.RMSNorm(self.value_width, eps=1e-5)
        self.convolutions = torch.nn.ModuleList(
            torch.nn.Conv1d(n, n, kernel, groups=n, padding=kernel - 1, bias=False) for n in (heads * key_width, heads * key_width, width)
        )

    def split(self, x):
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def convolved(self, x, convolution):
        return self.split(F.silu(convolution(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)))

    def lifted(self, x):
        x = F.normalize(x, dim=-1)
        a = self.coefficients.softmax(0)
        second = x[..., self.left] * x[..., self.right] * (a[2] * self.multiplicity).sqrt()
        return torch.cat([a[0].sqrt().expand(*x.shape[:-1], 1), x * a[1].sqrt(), second], -1)

    def forward(self, x):
        batch, length, width = x.shape
        b, c = self.chunk, self.window
        q, k, v = (self.convolved(f(x), g) for f, g in zip((self.query, self.key, self.value), self.convolutions))
        q, k = self.lifted(q), self.lifted(k)
        log_alpha = (F.logsigmoid(self.retention(x)) / 16).transpose(1, 2)
        eta = (torch.sigmoid(self.rate(x)) * (2 / (b * c))).transpose(1, 2)
        gamma = self.split(torch.sigmoid(self.window_gate(x)))
        o = omega_rule(q, k, v, log_alpha, eta, gamma, self.memory, b)
        o = self.norm(o).transpose(1, 2).reshape(batch, length, width)
        return self.output(o * F.silu(self.output_gate(x)))


def layer(width, heads, length):
    return Atlas(width, heads)


def operator(width, heads, length):
    (v,) = gla.heads_of(width, heads, length, 1)
    q, k = (F.normalize(torch.randn(1, length, heads, 91), dim=-1).transpose(1, 2) for _ in range(2))
    gates = [F.logsigmoid(torch.randn(1, heads, length)) / 16, torch.rand(1, heads, length) / 16, torch.rand(1, heads, length, 4)]
    memory = torch.zeros(heads, 91, width // heads)
    return [q, k, v, *gates], lambda *x: omega_rule(*x, memory, 8)
