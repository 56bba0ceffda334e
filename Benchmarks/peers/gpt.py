"""PyTorch peers of a GPT training step: forward, loss, backward, AdamW, zero_grad.

A plain decoder-only transformer (pre-norm, GELU, learned positions, tied head) as one writes it in PyTorch.
CASES: name -> function that sets the case up and returns the thunk to be timed (one training step; returns the loss).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Size:
    width: int
    layers: int
    heads: int
    batch: int
    length: int
    vocabulary: int = 256


SIZES = {
    "gpt-5m": Size(width=256, layers=6, heads=8, batch=8, length=512),
    "gpt-tiny": Size(width=64, layers=2, heads=4, batch=4, length=64),
}


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batch(size):
    generator = torch.Generator().manual_seed(1)
    data = torch.randint(0, size.vocabulary, (size.batch, size.length + 1), generator=generator)
    return data[:, :-1].contiguous(), data[:, 1:].contiguous()


def training_step(size, compiled=False, fused=None):
    torch.manual_seed(0)
    model = GPT(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=fused)
    tokens, targets = batch(size)

    def loss_of(tokens, targets):
        logits = model(tokens)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))

    loss_function = torch.compile(loss_of) if compiled else loss_of

    def step():
        loss = loss_function(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


CASES = {}
for name, size in SIZES.items():
    CASES[f"{name} eager"] = lambda size=size: training_step(size)
    CASES[f"{name} eager, fused AdamW"] = lambda size=size: training_step(size, fused=True)
    CASES[f"{name} torch.compile"] = lambda size=size: training_step(size, compiled=True)
