"""PyTorch peers of the state-space kernels: the forms of the S4 papers' code in plain torch operators, float32.

CASES maps a name to a setup function; calling it returns a thunk that runs forward and backward once.
* s4d: Vandermonde kernel by the full [D, N, L] exponential, convolution by rfft/irfft of 2L points.
* s4: the diagonal-plus-low-rank kernel by Cauchy sums formed in full, [4, D, N, L/2+1] reduced over N; same convolution.
* vandermonde, cauchy, convolution: the parts alone.
D channels, N states (N/2 conjugate pairs), B sequences of L steps; input [B, L, D], read as its transpose.
"""

import torch


def convolve(u, k, skip):
    length = u.shape[-1]
    size = 2 * length
    y = torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., :length]
    return y + u * skip[:, None]


def vandermonde(coefficient, log_transition, length):
    powers = torch.exp(log_transition[..., None] * torch.arange(length))
    return 2 * torch.einsum("dn,dnl->dl", coefficient, powers).real


def cauchy(numerators, poles, g, h):
    numerators = torch.cat([numerators, numerators.conj()], -1)
    poles = torch.cat([poles, poles.conj()], -1)
    return torch.stack([(v[..., None] / (g - h * poles[..., None])).sum(-2) for v in numerators])


def dplr_kernel(c, b, p, poles, delta, g, h, length):
    pairs = torch.stack([c * b, c * p, p.conj() * b, p.conj() * p]) * delta
    r = cauchy(pairs, poles, g, h)
    return torch.fft.irfft(r[0] - h * r[1] * r[2] / (1 + h * r[3]), n=length)


def parameters(D, N):
    generator = torch.Generator().manual_seed(0)
    pairs = N // 2
    delta = torch.exp(torch.rand(D, 1, generator=generator) * 4.6 - 6.9)
    a = torch.complex(torch.full((D, pairs), -0.5), torch.pi * torch.arange(pairs).expand(D, pairs).float())
    b, c, p = (torch.randn(D, pairs, dtype=torch.complex64, generator=generator) for _ in range(3))
    return delta, (delta * a).contiguous(), b, c, p


def nodes(L):
    omega = torch.exp(-2j * torch.pi * torch.arange(L // 2 + 1, dtype=torch.float64) / L)
    return (1 - omega).to(torch.complex64), ((1 + omega) / 2).to(torch.complex64)


def backward_of(function, leaves, shape, layout=None):
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.randn(shape)
    if layout == "transposed":
        upstream = torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2)

    def run():
        return torch.autograd.grad(function(), leaves, upstream)

    return run


def s4d(D, N, L, B):
    def setup():
        delta, poles, b, c, _ = parameters(D, N)
        u, skip = torch.randn(B, L, D), torch.randn(D)
        return backward_of(lambda: convolve(u.transpose(1, 2), vandermonde(c * b, poles, L), skip), [u, c, poles, skip], (B, D, L), "transposed")
    return setup


def s4(D, N, L, B):
    def setup():
        delta, poles, b, c, p = parameters(D, N)
        g, h = nodes(L)
        u, skip = torch.randn(B, L, D), torch.randn(D)
        return backward_of(lambda: convolve(u.transpose(1, 2), dplr_kernel(c, b, p, poles, delta, g, h, L), skip),
                           [u, c, b, p, poles, skip], (B, D, L), "transposed")
    return setup


def vandermonde_alone(D, N, L):
    def setup():
        _, poles, b, c, _ = parameters(D, N)
        return backward_of(lambda: vandermonde(c, poles, L), [c, poles], (D, L))
    return setup


def cauchy_alone(D, N, L):
    def setup():
        _, poles, b, c, p = parameters(D, N)
        g, h = nodes(L)
        pairs = torch.stack([c, b, p, c * p])
        leaves = [pairs, poles]
        for leaf in leaves:
            leaf.requires_grad_()
        upstream = torch.randn(4, D, L // 2 + 1, dtype=torch.complex64)
        return lambda: torch.autograd.grad(cauchy(pairs, poles, g, h), leaves, upstream)
    return setup


def convolution_alone(D, L, B):
    def setup():
        u, k, skip = torch.randn(B, L, D), torch.randn(D, L), torch.randn(D)
        return backward_of(lambda: convolve(u.transpose(1, 2), k, skip), [u, k, skip], (B, D, L), "transposed")
    return setup


# The naive kernels hold several complex [D, N, L] intermediates for their backward: cases above 1M channel-steps (about
# 270 MB a copy) are left out.
NAIVE_LIMIT = 64 * 16384
LENGTHS = (1024, 4096, 16384, 65536)
CASES = {}
for D in (64, 256):
    for L in LENGTHS:
        for B in (1, 4):
            CASES[f"convolution D={D} L={L} B={B}"] = convolution_alone(D, L, B)
            if D * L <= NAIVE_LIMIT:
                CASES[f"s4d D={D} N=64 L={L} B={B}"] = s4d(D, 64, L, B)
            if D * L <= NAIVE_LIMIT:
                CASES[f"s4 D={D} N=64 L={L} B={B}"] = s4(D, 64, L, B)
        if D * L <= NAIVE_LIMIT:
            CASES[f"vandermonde D={D} N=64 L={L}"] = vandermonde_alone(D, 64, L)
        if D * L <= NAIVE_LIMIT:
            CASES[f"cauchy D={D} N=64 L={L}"] = cauchy_alone(D, 64, L)
