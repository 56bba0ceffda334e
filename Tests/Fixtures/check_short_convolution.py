"""Checks the fused short convolution against float64 torch.nn.functional.conv1d.

    python Tests/Fixtures/check_short_convolution.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch
import torch.nn.functional as F

from check_gated_linear_attention import error, report
import check_gated_linear_attention as common


def reference(x, weight, activated, offsets):
    parts = []
    for a, b in zip(offsets, offsets[1:]):
        z = F.conv1d(F.pad(x[:, a:b].transpose(1, 2), (weight.shape[1] - 1, 0)), weight.unsqueeze(1), groups=x.shape[2]).transpose(1, 2)
        parts.append(F.silu(z) if activated else z)
    return torch.cat(parts, 1)


def check(batch, length, width, kernel, activated, offsets=None, threads=1):
    generator = torch.Generator().manual_seed(length + width)
    x = torch.randn(batch, length, width + 5, generator=generator)[..., 2 : 2 + width].requires_grad_()
    w = torch.randn(width, kernel, generator=generator).requires_grad_()
    dy = torch.randn(batch, length, width, generator=generator)
    packing = None if offsets is None else torch.tensor(offsets)
    torch.set_num_threads(threads)
    y = torch.ops.martlet.short_convolution(x, w, activated, packing)
    ours = torch.autograd.grad(y, [x, w], dy)
    torch.set_num_threads(1)
    doubles = [t.detach().double().requires_grad_() for t in (x, w)]
    r = reference(*doubles, activated, [a for a in (offsets or [0, length])])
    theirs = torch.autograd.grad(r, doubles, dy.double())
    errors = {"y": error(y.detach(), r.detach()), "dx": error(ours[0], theirs[0]), "dw": error(ours[1], theirs[1])}
    report(f"{batch} x {length} x {width}, kernel {kernel}, activated {activated}, packed {offsets is not None}", errors, 2e-6)


def main():
    torch.ops.load_library(sys.argv[1])
    for activated in (False, True):
        for length in (1, 2, 3, 7, 256, 257, 700):
            for width, kernel in ((1, 1), (16, 4), (37, 3), (64, 9)):
                check(2, length, width, kernel, activated, threads=2)
        check(1, 700, 20, 4, activated, offsets=[0, 1, 3, 300, 620, 623, 700])
    print("FAILED" if common.failures else "all within tolerance", common.failures or "")
    sys.exit(1 if common.failures else 0)


if __name__ == "__main__":
    main()
