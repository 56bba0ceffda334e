"""Checks the fused short convolution against PyTorch's own in float64.

    python Tests/Fixtures/check_short_convolution.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of the output and every gradient; exits 1 above the tolerance.
"""

import sys

import torch
import torch.nn.functional as F

from kernel_errors import error, finish, report


def convolution(x, w, b, past, activated):
    before = torch.zeros(x.shape[0], w.shape[1] - 1, x.shape[2], dtype=x.dtype) if past is None else past
    y = F.conv1d(torch.cat([before, x], 1).transpose(1, 2), w.unsqueeze(1), b, groups=x.shape[2]).transpose(1, 2)
    return F.silu(y) if activated else y


def packed(x, w, b, offsets, activated):
    return torch.cat([convolution(x[:, a:e], w, b, None, activated) for a, e in zip(offsets, offsets[1:]) if e > a], 1)


def check(batch, length, width, kernel, biased=True, started=True, activated=True, strided=True, threads=1, offsets=None):
    generator = torch.Generator().manual_seed(length * 31 + width)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    x = normal(batch, length, width + 7)[..., 3 : 3 + width] if strided else normal(batch, length, width)
    inputs = [x, normal(width, kernel), normal(width) if biased else None, normal(batch, kernel - 1, width) if started else None]
    leaves = [None if v is None else v.detach().requires_grad_() for v in inputs]
    doubles = [None if v is None else v.detach().double().requires_grad_() for v in inputs]
    torch.set_num_threads(threads)
    y = torch.ops.martlet.short_convolution(*leaves, activated, None if offsets is None else torch.tensor(offsets))
    wanted = convolution(*doubles, activated) if offsets is None else packed(*doubles[:3], offsets, activated)
    dy = normal(*y.shape)
    (y * dy).sum().backward()
    (wanted * dy.double()).sum().backward()
    torch.set_num_threads(1)
    errors = {"y": error(y.detach(), wanted.detach())}
    for name, leaf, double in zip(("x", "w", "b", "past"), leaves, doubles):
        if leaf is not None:
            errors["d" + name] = error(leaf.grad, double.grad)
    report(f"{batch}x{length}x{width} kernel {kernel}", errors)


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)
    for length in (1, 2, 3, 4, 63, 64, 65, 66, 130, 500):
        check(2, length, 20, 4)
    for width in (1, 16, 255, 256, 257, 600):
        check(2, 70, width, 4, threads=3)
    for kernel in (1, 2, 3, 5, 16):
        check(1, 80, 33, kernel)
    check(2, 70, 20, 4, biased=False)
    check(2, 70, 20, 4, started=False)
    check(2, 70, 20, 4, activated=False)
    check(2, 70, 20, 4, strided=False)
    check(1, 5, 20, 7)
    for activated in (True, False):
        check(1, 700, 20, 4, started=False, activated=activated, offsets=[0, 1, 3, 3, 300, 620, 623, 700], threads=2)
    finish()


if __name__ == "__main__":
    main()
