"""Checks martlet::toeplitz_attention against the quadratic form in float64 with autograd.

Usage: check_toeplitz_attention.py LIBRARY.so        prints the worst relative error of each result, exits 1 above the tolerance.
Relative error: max |a - b| / max |b| over a tensor.
"""

import sys

import torch

TOLERANCE = 5e-6
worst = {}
failures = []


def reference(q, k, v, past, future=None):
    """N_i = sum_j c_{j-i} (q_i . k_j) v_j and D_i, with c_{-m} = past_m and c_m = future_m for m >= 1."""
    length = q.shape[2]
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]  # j - i
    weights = torch.where(distance <= 0, past[:, (-distance).clamp(min=0)], 0)
    if future is not None:
        weights = weights + torch.where(distance > 0, future[:, distance.clamp(min=0)], 0)
    a = weights * (q @ k.mT)
    return a @ v, a.sum(-1)


def compare(case, name, ours, expected):
    if expected.numel() == 0:
        return
    error = (ours.double() - expected).abs().max().item() / max(expected.abs().max().item(), 1e-300)
    if not error <= TOLERANCE:
        failures.append(f"{case} {name}: {error:.2e}")
    if not error <= worst.get(name, (-1.0, ""))[0]:
        worst[name] = (error, case)


def check(batch, heads, length, features, width, both, strided=False):
    case = f"B={batch} H={heads} L={length} m={features} dv={width} future={both} strided={strided}"
    shape = (batch, length, heads) if strided else (batch, heads, length)
    make = lambda last: torch.randn(*shape, last).transpose(1, 2) if strided else torch.randn(*shape, last)
    q, k, v = make(features).exp(), make(features).exp(), make(width)
    arguments = [q, k, v, torch.randn(heads, length).exp()] + ([torch.randn(heads, length).exp()] if both else [])
    upstream = [make(width), make(1)[..., 0]]
    mine = [a.detach().requires_grad_() for a in arguments]
    wide = [a.detach().double().requires_grad_() for a in arguments]
    results, expected = torch.ops.martlet.toeplitz_attention(*mine), reference(*wide)
    for name, a, b in zip(("numerator", "denominator"), results, expected):
        compare(case, name, a.detach(), b.detach())
    ours = torch.autograd.grad(results, mine, upstream)
    theirs = torch.autograd.grad(expected, wide, [u.double() for u in upstream])
    for name, a, b in zip(("d query", "d key", "d value", "d past", "d future"), ours, theirs):
        compare(case, name, a, b)
    # What one result alone gives, without gradients of the weights.
    only = torch.autograd.grad(torch.ops.martlet.toeplitz_attention(*mine)[0].sum(), mine[0])[0]
    compare(case, "d query alone", only, torch.autograd.grad(reference(*wide)[0].sum(), wide[0])[0])


def check_refusals():
    q, v, past = torch.randn(1, 2, 8, 3), torch.randn(1, 2, 8, 4), torch.randn(2, 8)
    operator = torch.ops.martlet.toeplitz_attention

    def second():
        leaf = q.clone().requires_grad_()
        torch.autograd.grad(operator(leaf, q, v, past)[0].square().sum(), leaf, create_graph=True)

    wrong = {
        "key of other features": lambda: operator(q, q[..., :2], v, past),
        "value of other length": lambda: operator(q, q, v[:, :, :5], past),
        "weights of other length": lambda: operator(q, q, v, past[:, :5]),
        "future of other heads": lambda: operator(q, q, v, past, past[:1]),
        "float64": lambda: operator(q.double(), q.double(), v.double(), past.double()),
        "second derivative": second,
    }
    for name, call in wrong.items():
        try:
            call()
        except RuntimeError as error:
            if "martlet" not in str(error):
                failures.append(f"refusal of {name}: {error}")
        else:
            failures.append(f"refusal of {name}: accepted")


def main():
    torch.ops.load_library(sys.argv[1])
    torch.manual_seed(1)
    for both in (False, True):
        for length in (1, 2, 15, 16, 17, 100, 513, 1024, 1600):
            check(1, 2, length, 3, 5, both)
        check(2, 3, 129, 16, 17, both)
        check(1, 1, 640, 20, 32, both, strided=True)
        check(2, 2, 9001 // 4, 2, 1, both, strided=True)
        check(1, 1, 40, 4, 0, both)
    check_refusals()
    for name, (error, case) in sorted(worst.items()):
        print(f"{name:16} {error:.2e}   ({case})")
    for failure in failures:
        print("FAILED", failure)
    sys.exit(1 if failures else 0)


main()
