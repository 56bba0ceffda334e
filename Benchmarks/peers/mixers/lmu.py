"""The Legendre memory unit by Fourier transforms, as its authors' public code and LMUFormer's run it: the impulse responses' transform is kept."""

import torch


def transform(d, length):
    """The impulse responses' Fourier transform."""
    i = torch.arange(d, dtype=torch.float64)
    rate = (2 * i + 1) / length
    above = i[:, None] < i[None, :]
    a = rate[:, None] * torch.where(above, -1.0, 1.0 - 2 * ((i[:, None] - i[None, :] + 1) % 2))
    system = torch.zeros(d + 1, d + 1, dtype=torch.float64)
    system[:d, :d], system[:d, d] = a, rate * (1 - 2 * (i % 2))
    held = torch.linalg.matrix_exp(system)
    power, responses = held[:d, :d], held[:d, d:]
    while responses.shape[1] < length:
        responses = torch.cat([responses, power @ responses], 1)
        power = power @ power
    return torch.fft.rfft(responses[:, :length].float(), n=2 * length)


def memory(u, transformed):
    """[B, L] -> [B, L, d]."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u.unsqueeze(1), n=2 * length) * transformed
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length].transpose(1, 2)


class LMU(torch.nn.Module):
    def __init__(self, width, length):
        super().__init__()
        d = width
        self.register_buffer("transform", transform(d, length), persistent=False)
        self.input = torch.nn.Linear(width, 1)
        self.hidden = torch.nn.Linear(d + width, width)
        self.output = torch.nn.Linear(width, width)

    def forward(self, x):
        m = memory(self.input(x).relu().squeeze(-1), self.transform)
        return self.output(self.hidden(torch.cat([m, x], -1)).relu())


def layer(width, heads, length):
    return LMU(width, length)


def operator(width, heads, length):
    transformed = transform(width, length)
    return [torch.randn(1, length)], lambda u: memory(u, transformed)
