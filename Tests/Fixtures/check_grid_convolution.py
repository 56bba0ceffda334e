"""Checks the fused depthwise convolution of tokens on a grid against PyTorch's conv2d in float64.

    python Tests/Fixtures/check_grid_convolution.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of the output and every gradient; exits 1 above the tolerance.
"""

import sys

import torch
import torch.nn.functional as F

from kernel_errors import error, finish, report


def reference(x, weight, bias, columns):
    batch, length, width = x.shape
    columns = min(columns, length)
    rows = -(-length // columns)
    image = F.pad(x, (0, 0, 0, rows * columns - length)).view(batch, rows, columns, width).permute(0, 3, 1, 2)
    repeat = width // weight.shape[0]
    weight, bias = weight.repeat(repeat, 1, 1, 1), None if bias is None else bias.repeat(repeat)
    y = F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=width)
    return y.permute(0, 2, 3, 1).reshape(batch, rows * columns, width)[:, :length]


def check(name, batch, length, width, columns, kernel=5, shared=None, biased=True, sliced=False, threads=2):
    generator = torch.Generator().manual_seed(length)
    randn = lambda *s: torch.randn(*s, generator=generator)
    x = randn(batch, length, 2 * width)[..., width:] if sliced else randn(batch, length, width)
    inputs = {"x": x, "w": randn(shared or width, 1, kernel, kernel)} | ({"b": randn(shared or width)} if biased else {})
    up = randn(batch, length, width)
    ours = {n: v.detach().requires_grad_() for n, v in inputs.items()}
    exact = {n: v.detach().double().requires_grad_() for n, v in inputs.items()}
    torch.set_num_threads(threads)
    y = torch.ops.martlet.depthwise_grid_convolution(ours["x"], ours["w"], ours.get("b"), columns)
    y.backward(up)
    r = reference(exact["x"], exact["w"], exact.get("b"), columns)
    r.backward(up.double())
    with torch.no_grad():
        torch.set_num_threads(1)
        assert torch.equal(y, torch.ops.martlet.depthwise_grid_convolution(ours["x"], ours["w"], ours.get("b"), columns))
    errors = {"y": error(y.detach(), r.detach())} | {"d" + n: error(ours[n].grad, exact[n].grad) for n in inputs}
    report(name, errors, 2e-6)


def main():
    torch.ops.load_library(sys.argv[1])
    check("one token", 1, 1, 8, 1)
    check("8 x 8", 2, 64, 32, 8)
    check("a short last row", 2, 61, 24, 8)
    check("fewer tokens than a row", 1, 5, 16, 9)
    check("shared by heads", 2, 70, 48, 10, shared=12)
    check("3 x 3 without bias", 2, 90, 40, 9, kernel=3, biased=False)
    check("7 x 7", 1, 100, 20, 10, kernel=7)
    check("a slice of a projection", 2, 300, 64, 20, sliced=True)
    check("strips and tiles", 2, 3000, 40, 300)
    check("one long row", 1, 1000, 16, 1000, kernel=3)
    check("L 4096", 1, 4096, 64, 64)
    finish()


main()
