"""Checks the states of a linear time-invariant system in low-rank chunks against its recurrence in float64.

    python Tests/Fixtures/check_system_states.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of the states and of the gradients of the signal and of the states before the
chunks; exits 1 above the tolerance.
"""

import sys

import torch

from kernel_errors import error, finish, report


def legendre(width, window):
    """The Legendre delay of Voelker et al. (2019), held over unit steps."""
    index = torch.arange(width, dtype=torch.float64)
    scale = (2 * index + 1) / window
    row, column = index[:, None], index[None, :]
    a = torch.where(row < column, -torch.ones(()).double(), (-1.0) ** (row - column + 1)) * scale[:, None]
    joint = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    joint[:width, :width], joint[:width, width] = a, (-1.0) ** index * scale
    held = torch.matrix_exp(joint)
    return held[:width, :width], held[:width, width]


def strips(matrix):
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -columns % 16))
    return padded.reshape(rows, -1, 16).transpose(0, 1).contiguous().float()


def system(a, b, chunk, tolerance=1e-7):
    """What the operator takes of A and B."""
    powers = [torch.eye(len(b), dtype=torch.float64)]
    for _ in range(chunk - 1):
        powers.append(powers[-1] @ a)
    powers = torch.stack(powers)
    u, s, _ = torch.linalg.svd(powers.reshape(chunk, -1), full_matrices=False)
    tail = (s.flip(0) ** 2).cumsum(0).flip(0).sqrt() / s[0]
    rank = max(1, int((tail > tolerance).sum()))
    basis = u[:, :rank].T  # [rank, chunk]
    spanned = torch.einsum("il,lab->iab", basis, powers)
    lag = torch.arange(chunk)[None, :] - torch.arange(chunk)[:, None]  # from input to position
    inputs = torch.where(lag >= 0, basis[:, lag.clamp(min=0)], 0.0)  # [rank, chunk, chunk]
    carries = (spanned @ a).permute(2, 0, 1)  # [width, rank, width]
    width = len(b)
    return (
        basis.float().contiguous(), (spanned @ b).float().contiguous(),
        strips(inputs.permute(1, 0, 2).reshape(chunk, -1)), strips(carries.reshape(width, -1)),
        strips(inputs.permute(2, 0, 1).reshape(-1, chunk)), strips(carries.permute(1, 2, 0).reshape(-1, width)),
    )


def reference(signal, starts, a, b, chunk):
    states = []
    for t in range(signal.shape[1]):
        m = starts[:, t // chunk] if t % chunk == 0 else states[-1]
        states.append(m @ a.T + signal[:, t, None] * b)
    return torch.stack(states, 1)


def check(name, batch, length, width, window, chunk, tolerance=2e-6, turned=False):
    generator = torch.Generator().manual_seed(length)
    randn = lambda *s: torch.randn(*s, generator=generator)
    a, b = legendre(width, window)
    ours = [randn(batch, length), randn(batch, -(-length // chunk), width)]
    exact = [x.double().requires_grad_() for x in ours]
    ours = [x.requires_grad_() for x in ours]
    operands = system(a, b, chunk)
    up = randn(batch, width, length).transpose(1, 2) if turned else randn(batch, length, width)
    y = torch.ops.martlet.system_states(*ours, *operands)
    y.backward(up)
    r = reference(*exact, a, b, chunk)
    r.backward(up.double())
    with torch.no_grad():
        torch.set_num_threads(1)
        assert torch.equal(y, torch.ops.martlet.system_states(*ours, *operands))
        torch.set_num_threads(2)
    report(
        f"{name}, rank {len(operands[0])}",
        {"y": error(y.detach(), r.detach()), "dsignal": error(ours[0].grad, exact[0].grad), "dstarts": error(ours[1].grad, exact[1].grad)},
        tolerance,
    )


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(2)
    check("one step", 1, 1, 1, 1.0, 16)
    check("part of a chunk", 2, 13, 5, 20.0, 16)
    check("chunks and a part", 3, 100, 20, 40.0, 32)
    check("full rank", 2, 64, 24, 8.0, 16)
    check("many sequences", 19, 70, 16, 300.0, 64)
    check("a gradient in another order", 2, 300, 24, 500.0, 64, turned=True)
    check("many chunks", 1, 5000, 48, 4096.0, 64)
    check("a long window", 1, 6000, 256, 65536.0, 128)
    finish()


if __name__ == "__main__":
    main()
