"""The kernels of the recurrent family alone, one thread: the figures in the head comments of Sources/CKernels.

Usage: family_kernels.py LIBRARY.so [kernel name parts ...]     e.g. family_kernels.py libMartletKernels.so delta omega
Processor time of one thread, the least of the calls of some two seconds (a virtual machine's neighbours make the others longer, often by
a half); forward, and forward with backward.
"""

import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

TOKENS = 4096


def normal(*shape):
    return torch.randn(*shape)


def heads(width, count=4, length=TOKENS):
    """[1, count, length, width], a view of tokens as a layer has them."""
    return normal(1, length, count, width).transpose(1, 2)


def gated(*shape):
    return F.logsigmoid(normal(*shape)) / 16


def delta():
    unit = lambda x: F.normalize(x, dim=-1)
    inputs = [unit(heads(64)), unit(heads(64)), heads(64), torch.rand(1, 4, TOKENS)]
    return inputs, lambda *x: torch.ops.martlet.delta_rule(*x)[0], 4


def linear():
    return [heads(64), heads(64), heads(64)], lambda *x: torch.ops.martlet.gated_linear_attention(*x)[0], 4


def gated_linear():
    inputs = [heads(64), heads(64), heads(64), F.logsigmoid(heads(64)) / 16]
    return inputs, lambda *x: torch.ops.martlet.gated_linear_attention(*x)[0], 4


def scalar_gated():
    return [heads(64), heads(64), heads(64), gated(1, 4, TOKENS)], lambda *x: torch.ops.martlet.gated_linear_attention(*x)[0], 4


def omega(chunk):
    def setup():
        f, dv, window = 91, 64, 4
        unit = lambda x: F.normalize(x, dim=-1)
        gates = torch.rand(1, 4, TOKENS, window)
        inputs = [unit(heads(f)), unit(heads(f)), heads(dv), torch.rand(1, 4, TOKENS) * 0.1 + 0.9, torch.rand(1, 4, TOKENS) * 0.05, gates]
        return inputs, lambda *x: torch.ops.martlet.omega_rule(*x, chunk=chunk)[0], 4

    return setup


def prefix():
    return [normal(1, 4, TOKENS), heads(64)], lambda *x: torch.ops.martlet.prefix_attention(*x)[0], 4


def scan():
    channels, states = 512, 16
    inputs = [
        normal(1, TOKENS, channels), normal(1, TOKENS, channels) - 4, -torch.rand(channels, states) * states, normal(1, TOKENS, states),
        normal(1, TOKENS, states), normal(channels), normal(1, TOKENS, channels),
    ]  # fmt: skip
    return inputs, lambda *x: torch.ops.martlet.selective_scan(*x)[0], channels


def convolution():
    x = normal(1, TOKENS, 1024)[..., :512]
    return [x, normal(512, 4)], lambda x, w: torch.ops.martlet.short_convolution(x, w), 1


def convolution_in_torch():
    x = normal(1, TOKENS, 1024)[..., :512]
    run = lambda x, w: F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), w.unsqueeze(1), groups=512)).transpose(1, 2)
    return [x, normal(512, 4)], run, 1


def long_convolution(length):
    def setup():
        inputs = [normal(1, length, 16).transpose(1, 2), normal(16, length) / length]
        return inputs, lambda u, k: torch.ops.martlet.fft_convolution(u, k, None), 16 * length / TOKENS

    return setup


def filter_bank(length):
    def setup():
        spectra = torch.ops.martlet.filter_spectra(normal(256, length) / length, length)
        return [normal(1, length)], lambda u: torch.ops.martlet.filter_bank(u, spectra, 256, length), 256 * length / TOKENS

    return setup


def system_states(window):
    """The same memory in low-rank chunks of 128 positions, without the scan that gives the states before the chunks."""

    def setup():
        sys.path.append(str(Path(__file__).parent.parent / "Tests" / "Fixtures"))
        from check_system_states import legendre, system

        operands = system(*legendre(256, window), 128)
        run = lambda u, starts: torch.ops.martlet.system_states(u, starts, *operands)
        return [normal(1, window), normal(1, window // 128, 256)], run, 256 * window / TOKENS

    return setup


def windowed():
    softmax = lambda x: x.softmax(-1)
    inputs = [heads(64), heads(64), heads(64), softmax(heads(64)), softmax(heads(64)), torch.full((4,), 0.1)]
    return inputs, lambda *x: torch.ops.martlet.windowed_linear_attention(*x, 64), 4


def tokens(feature, reweighted, rotated):
    def setup():
        angles = normal(16) if rotated else None
        rows = normal(1, TOKENS, 1024)
        inputs = [rows[..., i * 256 : (i + 1) * 256] for i in range(3)]
        run = lambda q, k, v: torch.ops.martlet.token_linear_attention(
            q, k, v, 4, feature=feature, reweighted=reweighted, angles=angles, columns=64
        )
        return inputs, run, 4

    return setup


def grid():
    x = normal(1, TOKENS, 1024)[..., :256]
    return [x, normal(256, 1, 5, 5), normal(256)], lambda x, w, b: torch.ops.martlet.depthwise_grid_convolution(x, w, b, 64), 1


def grid_in_torch():
    x = normal(1, TOKENS, 1024)[..., :256]
    image = lambda x: x.transpose(1, 2).reshape(1, 256, 64, 64)
    return [x, normal(256, 1, 5, 5), normal(256)], lambda x, w, b: F.conv2d(image(x), w, b, padding=2, groups=256), 1


def kernel_attention(length):
    """Positive features of queries and keys, values, and the weights e^b of distances backwards and forwards."""
    weights = [(normal(4, length) * 0.1).exp() for _ in range(2)]
    return [heads(16, length=length).exp(), heads(16, length=length).exp(), heads(64, length=length), *weights]


def toeplitz(length):
    def run(*x):
        numerator, denominator = torch.ops.martlet.toeplitz_attention(*x)
        return numerator / denominator.reshape(*numerator.shape[:-1], 1)

    return lambda: (kernel_attention(length), run, 4 * length / TOKENS)


def toeplitz_in_torch(length):
    """The transforms of all products of features and values at once."""

    def run(q, k, v, past, future):
        circulant = torch.cat([past, torch.zeros_like(past[:, :1]), future[:, 1:].flip(1)], 1)
        products = k.unsqueeze(-1) * F.pad(v, (0, 1), value=1.0).unsqueeze(-2)  # [1, H, L, m, dv + 1]
        spectrum = torch.fft.rfft(circulant)[..., None, None] * torch.fft.rfft(products, n=2 * length, dim=2)
        sums = torch.fft.irfft(spectrum, n=2 * length, dim=2)[:, :, :length]
        y = torch.einsum("bhlm,bhlmd->bhld", q, sums)
        return y[..., :-1] / y[..., -1:]

    return lambda: (kernel_attention(length), run, 4 * length / TOKENS)


CASES = {
    "delta rule": delta,
    "linear attention": linear,
    "gated linear attention": gated_linear,
    "scalar gate": scalar_gated,
    **{f"omega rule, chunk {b}": omega(b) for b in (4, 8, 16, 32)},
    "prefix attention": prefix,
    "selective scan": scan,
    "short convolution": convolution,
    "short convolution, conv1d": convolution_in_torch,
    **{f"long convolution, {n >> 10}k": long_convolution(n) for n in (4096, 16384, 65536, 262144)},
    **{f"filter bank, {n >> 10}k": filter_bank(n) for n in (4096, 16384, 65536)},
    "system states, 64k": system_states(65536),
    "windowed linear attention": windowed,
    "token linear attention, rala": tokens(0, True, True),
    "token linear attention, relu": tokens(1, False, False),
    "grid convolution 5x5": grid,
    "grid convolution 5x5, conv2d": grid_in_torch,
    **{f"toeplitz attention, {n}": toeplitz(n) for n in (512, 1024, 4096)},
    **{f"toeplitz attention in torch, {n}": toeplitz_in_torch(n) for n in (512, 1024, 4096)},
}


def measured(run):
    run()
    times = []
    while len(times) < 5 or sum(times) < 2:
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)
    print(f"{'':34s} {'forward':>12s} {'with backward':>14s}   ns a token and head (channel): forward, with backward")
    for name, setup in CASES.items():
        if sys.argv[2:] and not any(part in name for part in sys.argv[2:]):
            continue
        torch.manual_seed(0)
        inputs, run, units = setup()
        with torch.no_grad():
            forward = measured(lambda: run(*inputs))
            upstream = torch.randn_like(run(*inputs))
        leaves = [x.detach().requires_grad_() for x in inputs]
        both = measured(lambda: torch.autograd.grad(run(*leaves), leaves, upstream))
        each = [t / TOKENS / units * 1e9 for t in (forward, both)]
        print(f"{name:34s} {forward * 1e3:9.2f} ms {both * 1e3:11.2f} ms   {each[0]:9.1f} {each[1]:9.1f}", flush=True)


if __name__ == "__main__":
    main()
