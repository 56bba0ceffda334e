"""Checks the linearized relative positions and the simple RMS norm against float64 references differentiated by autograd.

    python Tests/Fixtures/check_linearized_positions.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch

from kernel_errors import error, finish, report


def reference(x, feature, u, theta, starts):
    """R(t theta) (I - 2 u u') phi(x), pairs (2i, 2i+1)."""
    if feature != "identity":
        x = torch.nn.functional.elu(x)
    if feature == "one_plus_elu":
        x = x + 1
    x = x - 2 * (x @ u)[..., None] * u
    positions = torch.arange(x.shape[2], dtype=torch.float64)[None, :] + torch.tensor(starts, dtype=torch.float64)[:, None]
    angle = positions[:, None, :, None] * theta  # [1 or B, 1, L, d/2]
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


def check(name, batch, heads, length, width, feature="one_plus_elu", starts=(0,), inside=True, threads=1, needs=(True, True)):
    generator = torch.Generator().manual_seed(length + width)
    if inside:
        x = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
    else:
        x = torch.randn(batch, heads, width, length, generator=generator).transpose(2, 3)
    u = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    theta = 10000 ** (-2 / width * torch.arange(width // 2)) * (1 + 0.1 * torch.randn(width // 2, generator=generator))
    x, theta = x.detach().requires_grad_(needs[0]), theta.requires_grad_(needs[1])
    doubles = [t.detach().double().requires_grad_(t.requires_grad) for t in (x, theta)]
    torch.set_num_threads(threads)
    y = torch.ops.martlet.linearized_positions(x, feature, u, theta, list(starts))
    r = reference(doubles[0], feature, u.double(), doubles[1], starts)
    assert y.transpose(1, 2).is_contiguous()
    dy = torch.randn(y.shape, generator=generator)
    errors = {"y": error(y.detach(), r.detach())}
    (y * dy).sum().backward()
    torch.set_num_threads(1)
    (r * dy.double()).sum().backward()
    for n, a, b in zip(("x", "theta"), (x, theta), doubles):
        if a.requires_grad:
            errors["d" + n] = error(a.grad, b.grad) if b.grad is not None else a.grad.abs().sum().item()
    report(name, errors, 2e-6)


def check_norm(name, shape, scale=1.0, eps=1e-8, zero_rows=0):
    generator = torch.Generator().manual_seed(shape[-1])
    x = scale * torch.randn(shape, generator=generator)
    if zero_rows:
        x[:zero_rows] = 0
    x.requires_grad_()
    d = x.detach().double().requires_grad_()
    y = torch.ops.martlet.simple_rms_norm(x, eps)
    r = d / (d.norm(dim=-1, keepdim=True) * shape[-1] ** -0.5 + eps)
    dy = torch.randn(shape, generator=generator)
    (y * dy).sum().backward()
    (r * dy.double()).sum().backward()
    rows = slice(zero_rows, None)
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    report(name, {"y": error(y.detach(), r.detach()), "dx": error(x.grad[rows], d.grad[rows])}, 2e-6)


def main():
    torch.ops.load_library(sys.argv[1])
    for feature in ("identity", "elu", "one_plus_elu"):
        for width in (2, 6, 16, 18, 64, 128):
            check(f"{feature}, width {width}", 2, 3, 50, width, feature)
    check("one token of rows at their own positions", 3, 2, 1, 32, starts=(0, 17, 90000))
    check("rows from their own positions", 2, 2, 20, 32, starts=(5, 1000))
    check("far positions", 1, 2, 100, 64, starts=(1000000,))
    check("channels apart", 2, 2, 30, 16, inside=False)
    check("pieces of a long sequence", 1, 4, 4099, 64, threads=3)
    check("only x is differentiated", 1, 2, 30, 16, needs=(True, False))
    check("only theta is differentiated", 1, 2, 30, 16, needs=(False, True))
    check("an empty sequence", 1, 2, 0, 16)
    for width in (7, 64, 300):
        check_norm(f"norm of {width} channels", (5, 11, width))
    check_norm("norm of small rows", (40, 64), scale=1e-6)
    check_norm("norm of rows as small as epsilon", (40, 64), scale=1e-8)
    check_norm("norm of small rows, large epsilon", (40, 64), scale=1e-2, eps=0.1)
    check_norm("norm with rows of zeros", (40, 64), zero_rows=3)
    finish()


if __name__ == "__main__":
    main()
