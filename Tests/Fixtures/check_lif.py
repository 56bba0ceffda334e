"""Checks the fused leaky integrate-and-fire neurons against their equations, differentiated by autograd with the surrogate.

    python Tests/Fixtures/check_lif.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch

from kernel_errors import error, finish, report


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(context, z, steepness):
        context.save_for_backward(z)
        context.steepness = steepness
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(context, gradient):
        (z,) = context.saved_tensors
        s = torch.sigmoid(context.steepness * z)
        return gradient * context.steepness * s * (1 - s), None


def neurons(x, v, tau, threshold, steepness):
    v = torch.zeros_like(x[:, 0]) if v is None else v
    spikes = []
    for t in range(x.shape[1]):
        h = v + (x[:, t] - v) * (1 / tau)
        s = Spike.apply(h - threshold, steepness)
        v = h * (1 - s.detach())
        spikes.append(s)
    return torch.stack(spikes, 1), v


def check(dtype, batch, length, width, tau=2.0, threshold=1.0, steepness=4.0, started=True, transposed=False):
    generator = torch.Generator().manual_seed(length)
    x = 2 * torch.randn(batch, length, width, dtype=dtype, generator=generator)
    if transposed:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    v = torch.randn(batch, width, dtype=dtype, generator=generator) if started else None
    pairs = [[None if y is None else y.detach().clone().requires_grad_() for y in (x, v)] for _ in range(2)]
    found, last = torch.ops.martlet.lif(*pairs[0], tau, threshold, steepness)
    wanted, wanted_last = neurons(*pairs[1], tau, threshold, steepness)
    dy, dv = torch.randn(x.shape, dtype=dtype, generator=generator), torch.randn(last.shape, dtype=dtype, generator=generator)
    for outputs in ((found, last), (wanted, wanted_last)):
        ((outputs[0] * dy).sum() + (outputs[1] * dv).sum()).backward()
    with torch.no_grad():
        assert torch.equal(torch.ops.martlet.lif(x, v, tau, threshold, steepness)[0], found)
    errors = {"spikes": error(found.detach(), wanted.detach()), "last": error(last.detach(), wanted_last.detach()),
              "dx": error(pairs[0][0].grad, pairs[1][0].grad)}
    if started:
        errors["dv"] = error(pairs[0][1].grad, pairs[1][1].grad)
    report(f"{str(dtype)[6:]} {batch}x{length}x{width} tau {tau} threshold {threshold}", errors, 1e-5 if dtype == torch.float32 else 1e-12)


def main():
    torch.ops.load_library(sys.argv[1])
    for dtype in (torch.float32, torch.float64):
        for length in (1, 2, 33, 200):
            for width in (1, 17, 256, 300):
                check(dtype, 2, length, width)
        check(dtype, 3, 40, 20, tau=1.0)
        check(dtype, 3, 40, 20, tau=3.0, threshold=0.5, steepness=2.0, started=False)
        check(dtype, 3, 40, 20, transposed=True)
    finish()


if __name__ == "__main__":
    main()
