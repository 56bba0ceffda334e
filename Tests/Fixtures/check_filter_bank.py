"""Checks one signal through many fixed filters against PyTorch's Fourier transforms in float64.

    python Tests/Fixtures/check_filter_bank.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of the output and the signal's gradient; exits 1 above the tolerance.
"""

import sys

import torch

from kernel_errors import error, finish, report


def reference(signal, responses):
    length = signal.shape[1]
    transform = lambda x: torch.fft.rfft(x, n=2 * length)
    y = transform(signal)[:, None] * transform(responses[:, :length])
    return torch.fft.irfft(y, n=2 * length)[..., :length].transpose(1, 2)


def check(name, batch, length, filters, capacity=None, taps=None, expanded=False, turned=False):
    generator = torch.Generator().manual_seed(length)
    randn = lambda *s: torch.randn(*s, generator=generator)
    capacity = capacity or length
    responses = randn(filters, taps or capacity)
    spectra = torch.ops.martlet.filter_spectra(responses, capacity)
    signal = randn(batch, length)
    ours, exact = signal.clone().requires_grad_(), signal.double().requires_grad_()
    up = randn(batch, filters, length).transpose(1, 2) if turned else randn(batch, length, filters)
    if expanded:
        up = torch.ones(1, 1, 1).expand(batch, length, filters)
    y = torch.ops.martlet.filter_bank(ours, spectra, filters, capacity)
    y.backward(up)
    r = reference(exact, responses.double())
    r.backward(up.double())
    with torch.no_grad():
        torch.set_num_threads(1)
        assert torch.equal(y, torch.ops.martlet.filter_bank(ours, spectra, filters, capacity))
        torch.set_num_threads(2)
    report(name, {"y": error(y.detach(), r.detach()), "dsignal": error(ours.grad, exact.grad)}, 5e-6)


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(2)
    check("one step", 1, 1, 1)
    check("fewer filters than lanes", 2, 50, 5)
    check("a length without a transform of its own", 1, 777, 32)
    check("shorter than the spectra", 3, 300, 40, capacity=1000)
    check("few taps", 2, 400, 16, taps=7)
    check("more signals than lanes", 19, 100, 20)
    check("a gradient in another order", 2, 200, 24, turned=True)
    check("a gradient of one number", 2, 200, 24, expanded=True)
    check("L 5000", 1, 5000, 48)
    check("L 65536", 1, 65536, 16)
    finish()


main()
