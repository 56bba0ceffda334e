"""S4D-Lin with N = 64: the Vandermonde kernel by the full [D, N/2, L] exponential as in the authors' s4d.py, convolution by FFT, GELU, GLU."""

import math

import torch
import torch.nn.functional as F
from state_space import convolve

LENGTHS = (1024, 4096, 16384)  # at 64k the exponentials alone take 4 GB each


class S4D(torch.nn.Module):
    def __init__(self, width, state=64, directions=1):
        super().__init__()
        half = state // 2
        self.kernel = torch.nn.Module()
        k = self.kernel
        k.log_dt = torch.nn.Parameter(torch.rand(width) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        k.log_A_real = torch.nn.Parameter(torch.full((width, half), math.log(0.5)))
        k.A_imag = torch.nn.Parameter((math.pi * torch.arange(half)).repeat(width, 1))
        k.B = torch.nn.Parameter(torch.tensor([1.0, 0.0]).repeat(width, half, 1))
        k.C = torch.nn.Parameter(torch.randn(directions, width, half, 2) * 0.5**0.5)
        self.D = torch.nn.Parameter(torch.randn(width))
        self.output = torch.nn.Linear(width, 2 * width)

    def kernels(self, length):
        k = self.kernel
        a = torch.complex(-k.log_A_real.exp(), k.A_imag)
        scaled = a * k.log_dt.exp()[:, None]
        c = torch.view_as_complex(k.C) * torch.view_as_complex(k.B) * (scaled.exp() - 1) / a
        powers = torch.exp(scaled[..., None] * torch.arange(length))
        return 2 * torch.einsum("sdn,dnl->sdl", c, powers).real

    def forward(self, x):
        u = x.transpose(1, 2)
        kernels = self.kernels(x.shape[1])
        y = convolve(u, kernels[0], self.D)
        if len(kernels) > 1:
            y = y + convolve(u.flip(-1), kernels[1], torch.zeros_like(self.D)).flip(-1)
        return F.glu(self.output(F.gelu(y).transpose(1, 2)), dim=-1)


def layer(width, heads, length):
    return S4D(width)
