"""Checks the fused linear attention among all tokens against float64 references differentiated by autograd.

    python Tests/Fixtures/check_token_linear_attention.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch
import torch.nn.functional as F

from kernel_errors import error, finish, report


def turned(x, angles, columns, prefix):
    """Pairs (2i, 2i + 1) of x [B, H, L, d]: the first half by the row, the second by the column."""
    cell = (torch.arange(x.shape[2]) - prefix).clamp_min(0)
    angle = torch.cat([(cell // columns)[:, None] * angles, (cell % columns)[:, None] * angles], 1)  # [L, d/2]
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(-2)


def reference(q, k, v, p, heads, feature, reweighted, eps, angles, columns, prefix, mask):
    """Explicit weights of all pairs, one sequence at a time."""
    phi = F.relu if feature else (lambda x: F.elu(x) + 1)
    out = []
    for b in range(q.shape[0]):
        keep = torch.ones(q.shape[1], dtype=q.dtype) if mask is None else mask[b].to(q.dtype)
        split = lambda x: x[b].view(q.shape[1], heads, -1).transpose(0, 1)[None]
        fq, fk, values = phi(split(q)), phi(split(k if p is None else k + p)), split(v)
        n = keep.sum().clamp_min(1)
        if reweighted:
            centre = (fq * keep[:, None]).sum(2, keepdim=True) / n
            score = (centre * fk).sum(-1, keepdim=True) * q.shape[2] ** -0.5 * heads**0.5
            score = score.masked_fill(keep[:, None] == 0, -float("inf"))
            fk = fk * n * torch.softmax(score, 2)
        fk = fk * keep[:, None]
        denominators = (fq @ fk.transpose(-1, -2)).sum(-1, keepdim=True) + eps * (n if reweighted else 1)
        if angles is not None:
            fq, fk = turned(fq, angles, columns, prefix), turned(fk, angles, columns, prefix)
        out.append((fq @ fk.transpose(-1, -2) @ values / denominators)[0].transpose(0, 1).flatten(1))
    return torch.stack(out)


def check(name, batch, length, heads, d, dv=None, feature=0, reweighted=True, rotated=True, positions=False, columns=7, prefix=0,
          lengths=None, threads=2, whole=False, eps=1e-6, tolerance=1e-5):
    generator = torch.Generator().manual_seed(length + d)
    dv = dv or d
    randn = lambda *s: torch.randn(*s, generator=generator)
    if whole:  # slices of one projection
        joint = randn(batch, length, heads * (2 * d + dv))
        q, k, v = joint.split([heads * d, heads * d, heads * dv], -1)
    else:
        q, k, v = randn(batch, length, heads * d), randn(batch, length, heads * d), randn(batch, length, heads * dv)
    p = 0.5 * randn(length, heads * d) if positions else None
    angles = 10000.0 ** -torch.linspace(0, 1, d // 4, dtype=torch.float64) if rotated else None
    mask = None if lengths is None else torch.arange(length) < torch.tensor(lengths)[:, None]
    up = randn(batch, length, heads * dv)
    if mask is not None:
        up = up * mask[..., None]
    inputs = {"q": q, "k": k, "v": v} | ({"p": p} if positions else {})
    ours = {n: x.detach().requires_grad_() for n, x in inputs.items()}
    exact = {n: x.detach().double().requires_grad_() for n, x in inputs.items()}
    torch.set_num_threads(threads)
    arguments = (heads, feature, reweighted, eps)
    grid = (angles, columns, prefix, mask)
    y = torch.ops.martlet.token_linear_attention(ours["q"], ours["k"], ours["v"], *arguments, ours.get("p"), *grid)
    with torch.no_grad():
        plain = torch.ops.martlet.token_linear_attention(ours["q"], ours["k"], ours["v"], *arguments, ours.get("p"), *grid)
    assert torch.equal(plain, y)
    y.backward(up)
    torch.set_num_threads(1)
    with torch.no_grad():
        single = torch.ops.martlet.token_linear_attention(ours["q"], ours["k"], ours["v"], *arguments, ours.get("p"), *grid)
    assert torch.equal(single, y), "the number of threads must not matter"
    r = reference(exact["q"], exact["k"], exact["v"], exact.get("p"), *arguments, *grid)
    r.backward(up.double())
    real = 1 if mask is None else mask[..., None]
    errors = {"y": error(y.detach() * real, r.detach() * real)}
    for n in inputs:
        errors["d" + n] = error(ours[n].grad, exact[n].grad)
    report(name, errors, tolerance)


def main():
    torch.ops.load_library(sys.argv[1])
    check("rank-augmented, one token", 1, 1, 2, 8, eps=0.5)
    check("rank-augmented", 2, 49, 2, 8)
    check("rank-augmented, slices of a projection", 2, 130, 4, 16, whole=True)
    check("rank-augmented, several pieces", 1, 1500, 3, 20, columns=40)
    check("rank-augmented, masked", 3, 77, 2, 12, lengths=[77, 30, 1])
    check("rank-augmented, masked, several pieces", 2, 1300, 2, 16, lengths=[700, 1300])
    check("rank-augmented, prefix", 2, 52, 2, 8, prefix=3)
    check("rank-augmented, not turned", 2, 63, 2, 7, rotated=False)
    check("rank-augmented, other value width", 2, 63, 2, 16, dv=5)
    check("turned without weights", 2, 63, 2, 16, reweighted=False)
    check("relu", 2, 63, 2, 8, feature=1, reweighted=False, rotated=False)
    check("relu with positions", 2, 130, 2, 16, feature=1, reweighted=False, rotated=False, positions=True)
    check("relu with positions, masked", 2, 700, 2, 9, feature=1, reweighted=False, rotated=False, positions=True, lengths=[650, 3])
    check("everything", 2, 90, 2, 16, feature=1, positions=True, prefix=1, lengths=[90, 41])
    check("wide heads", 1, 200, 1, 128, columns=14)
    check("L 4096", 1, 4096, 4, 64, columns=64, tolerance=2e-5)
    finish()


main()
