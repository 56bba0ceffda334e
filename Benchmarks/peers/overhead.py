"""PyTorch peers of models so small that the time goes into calls, allocations and bookkeeping, not arithmetic."""

import torch
import torch.nn.functional as F
from torch import nn


def perceptron():
    """A training step of 32 -> 64 -> 10 with a batch of 8: forward, loss, backward, AdamW."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, targets = torch.randn(8, 32), torch.arange(8)

    def run():
        loss = F.cross_entropy(model(x), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def chain():
    """200 dependent additions of 16 numbers, with gradients recorded and run back."""
    x = torch.zeros(16, requires_grad=True)
    one = torch.ones(16)

    def run():
        y = x
        for _ in range(200):
            y = y + one
        return torch.autograd.grad(y.sum(), x)

    return run


CASES = {"perceptron step": perceptron, "chain of 200 additions": chain}
