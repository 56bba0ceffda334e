"""A diagonal linear RNN with N = 1024: the kernel as one product of C with all powers of Lambda, convolution by FFT, GELU, GLU."""

import math

import torch
import torch.nn.functional as F
from state_space import convolve


class DLR(torch.nn.Module):
    def __init__(self, width, state=1024):
        super().__init__()
        self.kernel = torch.nn.Module()
        k = self.kernel
        k.log_A_real = torch.nn.Parameter(torch.rand(state) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        k.A_imag = torch.nn.Parameter(2 * math.pi * torch.arange(state) / state)
        k.C = torch.nn.Parameter(torch.randn(1, width, state, 2) * (0.5 / state) ** 0.5)
        self.D = torch.nn.Parameter(torch.randn(width))
        self.output = torch.nn.Linear(width, 2 * width)

    def forward(self, x):
        k = self.kernel
        log = torch.complex(-k.log_A_real.exp(), k.A_imag)
        powers = torch.exp(log[:, None] * torch.arange(x.shape[1]))
        kernel = (torch.view_as_complex(k.C[0]) @ powers).real
        y = convolve(x.transpose(1, 2), kernel, self.D)
        return F.glu(self.output(F.gelu(y).transpose(1, 2)), dim=-1)


def layer(width, heads, length):
    return DLR(width)
