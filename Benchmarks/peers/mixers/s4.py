"""S4 with HiPPO-LegS and N = 64: the kernel by Cauchy sums formed in full, as the authors' code does without its CUDA extension; the
convolution by FFT, GELU, GLU."""

import torch
from state_space import dplr_kernel, nodes
from mixers import s4d

LENGTHS = (1024, 4096)  # the Cauchy matrices, [D, N, L/2] for each of four sums, take 10 GB at 16k


def legs(state):
    """Lambda, P, B of the half with negative frequencies, complex128."""
    n = torch.arange(state, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    a = -torch.tril(root[:, None] * root, -1) - torch.diag(n + 1)
    p = (n + 0.5).sqrt()
    skew = a + p[:, None] * p + 0.5 * torch.eye(state, dtype=torch.float64)
    omega, v = torch.linalg.eigh(-1j * skew)
    half, adjoint = state // 2, v.conj().T
    return torch.complex(torch.full_like(omega, -0.5), omega)[:half], (adjoint @ p.to(v.dtype))[:half], (adjoint @ root.to(v.dtype))[:half]


class S4(s4d.S4D):
    def __init__(self, width, length, state=64):
        super().__init__(width, state)
        lam, p, b = legs(state)
        k = self.kernel
        with torch.no_grad():
            k.log_A_real.copy_((-lam.real).log().expand_as(k.log_A_real))
            k.A_imag.copy_(lam.imag.expand_as(k.A_imag))
            k.B.copy_(torch.view_as_real(b).expand_as(k.B))
        k.P = torch.nn.Parameter(torch.view_as_real(p).float().repeat(width, 1, 1))
        self.length = length

    def kernels(self, length):
        k = self.kernel
        c, b, p = (torch.view_as_complex(x) for x in (k.C[0], k.B, k.P))
        delta = k.log_dt.exp()[:, None]
        poles = torch.complex(-k.log_A_real.exp(), k.A_imag) * delta
        g, h = nodes(self.length)
        return dplr_kernel(c, b, p, poles, delta, g, h, self.length)[None, :, :length]


def layer(width, heads, length):
    return S4(width, length)
