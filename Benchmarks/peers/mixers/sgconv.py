"""SGConv as its authors' gconv_standalone.py computes it: kernels interpolated and put one after the other, torch.fft of 2L."""

import math

import torch
import torch.nn.functional as F


def convolve(u, k):
    length = u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(k, n=2 * length), n=2 * length)[..., :length]


class SGConv(torch.nn.Module):
    def __init__(self, width, length, dimension=64):
        super().__init__()
        scales = 1 + max(0, math.ceil(math.log2(length / dimension)))
        self.kernels = torch.nn.ParameterList(torch.randn(1, width, dimension) for _ in range(scales))
        self.skip = torch.nn.Parameter(torch.randn(width))
        self.output = torch.nn.Linear(width, width)
        self.register_buffer("norm", self.kernel(dimension * 2 ** (scales - 1), 1).norm(dim=-1)[None].detach())

    def kernel(self, length, norm):
        pieces = [F.interpolate(w, scale_factor=2 ** max(0, i - 1), mode="linear") * 0.5**i for i, w in enumerate(self.kernels)]
        return torch.cat(pieces, -1)[0, :, :length] / norm

    def forward(self, x):
        u = x.transpose(1, 2)
        y = convolve(u, self.kernel(u.shape[-1], self.norm[0, :, None]))
        y = F.gelu(y + u * self.skip[:, None])
        return self.output(y.transpose(1, 2))


def layer(width, heads, length):
    return SGConv(width, length)


def operator(width, heads, length):
    return [torch.randn(1, length, width).transpose(1, 2), torch.randn(width, length) / length], convolve
