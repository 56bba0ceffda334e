"""Peers of the mixers' layers: each method's public reference form as a PyTorch layer, and PyTorch's own attention.

A file mixers/NAME.py (NAME as `martlet compare --mixers` calls the mixer) defines

    LENGTHS = (1024, 4096)                       # optional: where the form fits in time and memory; default all
    def layer(width, heads, length): -> Module   # forward(x [1, length, width]) -> the same shape, at Martlet's default options
    def operator(width, heads, length)           # optional: (inputs, function), what the layer does between its projections
    def published(width, heads, length)          # optional: the same as the authors' code has it, where operator is a faster form
    PUBLISHED_LENGTHS = (1024, 4096)

CASES maps a name to a setup function; it returns the thunk to be timed.
"""

import functools
import importlib
from pathlib import Path

import torch
import torch.nn.functional as F

WIDTH, HEADS = 256, 4
LENGTHS = (1024, 4096, 16384, 65536)
CONTEXTS = (1024, 16384, 131072, 1048576)


class Attention(torch.nn.Module):
    """Causal softmax attention with projections without biases."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.output = torch.nn.Linear(width, width, bias=False)

    def project(self, x):
        batch, length, width = x.shape
        return self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        q, k, v = self.project(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(x.shape))

    def step(self, x, keys, values):
        """x [1, 1, width] after a context; its key and value take the cache's last place."""
        q, k, v = self.project(x)
        keys[:, :, -1:], values[:, :, -1:] = k, v
        return self.output(F.scaled_dot_product_attention(q, keys, values).transpose(1, 2).reshape(x.shape))


def training(make, length):
    torch.manual_seed(0)
    layer = make(length)
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    upstream = torch.randn(1, length, WIDTH)
    leaves = [x] + [p for p in layer.parameters() if p.requires_grad]
    # A parameter that takes no part (say, of tokens beyond the length) has no gradient.
    return lambda: torch.autograd.grad(layer(x), leaves, upstream, allow_unused=True)


def differentiated(make, length):
    torch.manual_seed(0)
    inputs, run = make(length)
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.no_grad():
        upstream = torch.randn_like(run(*leaves))
    return lambda: torch.autograd.grad(run(*leaves), leaves, upstream)


def token(context):
    layer = Attention(WIDTH, HEADS)
    keys, values = (torch.randn(1, HEADS, context + 1, WIDTH // HEADS) for _ in range(2))
    x = torch.randn(1, 1, WIDTH)

    @torch.no_grad()
    def run():
        return layer.step(x, keys, values)

    return run


def short(length):
    return f"{length >> 20}M" if length % (1 << 20) == 0 else f"{length >> 10}k"


def size(length):
    return f"L{short(length)} B1 D{WIDTH} H{HEADS}"


CASES = {}
for length in LENGTHS:
    make = lambda length: Attention(WIDTH, HEADS)
    CASES[f"attention layer forward+backward {size(length)}"] = functools.partial(training, make, length)
for context in CONTEXTS:
    CASES[f"attention layer, one token after {short(context)} D{WIDTH} H{HEADS}"] = functools.partial(token, context)
for path in sorted((Path(__file__).parent / "mixers").glob("[a-z]*.py")):
    module = importlib.import_module("mixers." + path.stem)
    for length in getattr(module, "LENGTHS", LENGTHS):
        make = lambda length, module=module: module.layer(WIDTH, HEADS, length)
        CASES[f"{path.stem} layer forward+backward {size(length)}"] = functools.partial(training, make, length)
        if hasattr(module, "operator"):
            make = lambda length, module=module: module.operator(WIDTH, HEADS, length)
            CASES[f"{path.stem} operator forward+backward {size(length)}"] = functools.partial(differentiated, make, length)
    for length in getattr(module, "PUBLISHED_LENGTHS", ()):
        make = lambda length, module=module: module.published(WIDTH, HEADS, length)
        CASES[f"{path.stem} published operator forward+backward {size(length)}"] = functools.partial(differentiated, make, length)
