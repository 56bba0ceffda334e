"""Checks the fused selective scan against the recurrence in float64, differentiated by autograd.

    python Tests/Fixtures/check_selective_scan.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch
import torch.nn.functional as F

from kernel_errors import error, finish, report


def recurrence(x, delta, A, B, C, D, z, bias, state, softplus):
    """h_t = e^{delta_t A} h_{t-1} + delta_t x_t B_t, y_t = (C_t h_t + D x_t) silu(z_t), token by token."""
    batch, length, width = x.shape
    h = torch.zeros(batch, width, A.shape[1], dtype=x.dtype) if state is None else state
    if bias is not None:
        delta = delta + bias
    if softplus:
        delta = F.softplus(delta, threshold=100)
    outputs = []
    for t in range(length):
        d = delta[:, t, :, None]
        h = (d * A).exp() * h + d * x[:, t, :, None] * B[:, t, None]
        y = (h * C[:, t, None]).sum(-1)
        if D is not None:
            y = y + D * x[:, t]
        outputs.append(y if z is None else y * F.silu(z[:, t]))
    return (torch.stack(outputs, 1) if outputs else x), h


def check(name, batch, length, width, states, given=("D", "z", "bias", "state"), softplus=True, strided=True, scale=1.0, tolerance=1e-5,
          threads=1, last=True):
    generator = torch.Generator().manual_seed(length + width)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def sequence(d):  # a slice of wider rows, as the layer's projections give
        return normal(batch, length, d + 5)[..., 2 : 2 + d] if strided else normal(batch, length, d)

    delta = sequence(width) * scale - 1
    inputs = {
        "x": sequence(width), "delta": delta if softplus else delta.abs() * 0.1, "A": -(1 + torch.rand(width, states, generator=generator) * states),
        "B": sequence(states), "C": sequence(states), "D": normal(width), "z": sequence(width) * scale, "bias": normal(width),
        "state": normal(batch, width, states),
    }
    for optional in ("D", "z", "bias", "state"):
        if optional not in given:
            inputs[optional] = None
    leaves = {n: None if v is None else v.detach().requires_grad_() for n, v in inputs.items()}
    doubles = {n: None if v is None else v.detach().double().requires_grad_() for n, v in inputs.items()}
    wanted, wanted_last = recurrence(*doubles.values(), softplus)
    torch.set_num_threads(threads)
    found, found_last = torch.ops.martlet.selective_scan(*leaves.values(), softplus)
    dy, dlast = normal(*wanted.shape), normal(*wanted_last.shape) * last
    with torch.no_grad():
        plain, plain_last = torch.ops.martlet.selective_scan(*leaves.values(), softplus)
    assert torch.equal(plain, found) and torch.equal(plain_last, found_last)
    ((found * dy).sum() + (found_last * dlast).sum()).backward()
    torch.set_num_threads(1)
    ((wanted * dy.double()).sum() + (wanted_last * dlast.double()).sum()).backward()
    errors = {"y": error(found.detach(), wanted.detach()), "last": error(found_last.detach(), wanted_last.detach())}
    for n, leaf in leaves.items():
        if leaf is not None and doubles[n].grad is not None:
            errors["d" + n] = error(leaf.grad, doubles[n].grad)
    report(name, errors, tolerance)


def check_threads():
    """One result for every number of threads."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 100, 150), (2, 100, 150), (150, 16), (2, 100, 16), (2, 100, 16)]
    results = []
    for threads in (1, 2, 3):
        generator.manual_seed(1)
        leaves = [torch.randn(*s, generator=generator) for s in shapes]
        leaves[2] = -leaves[2].abs()
        leaves = [v.requires_grad_() for v in leaves]
        torch.set_num_threads(threads)
        y, last = torch.ops.martlet.selective_scan(*leaves)
        results.append([y, last, *torch.autograd.grad((y * y).sum() + last.sum(), leaves)])
    torch.set_num_threads(1)
    same = all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
    report("the same bits on 1, 2 and 3 threads", {"differ": 0.0 if same else 1.0})


def check_refusals():
    x, A, B = torch.randn(1, 5, 4), -torch.rand(4, 3), torch.randn(1, 5, 3)
    f = torch.ops.martlet.selective_scan
    for name, call in {
        "delta of another shape": lambda: f(x, x[..., :3], A, B, B),
        "A of other channels": lambda: f(x, x, A[:3], B, B),
        "B of other states": lambda: f(x, x, A, x, B),
        "state of another shape": lambda: f(x, x, A, B, B, None, None, None, x),
        "float64": lambda: f(x.double(), x.double(), A.double(), B.double(), B.double()),
    }.items():
        try:
            call()
            report(f"refuses {name}", {"accepted": 1.0})
        except RuntimeError:
            report(f"refuses {name}", {"accepted": 0.0})
    y = x.clone().requires_grad_()
    try:
        torch.autograd.grad(f(y, x, A, B, B)[0].sum(), y, create_graph=True)
        report("refuses second derivatives", {"accepted": 1.0})
    except RuntimeError:
        report("refuses second derivatives", {"accepted": 0.0})


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)
    for length in (0, 1, 2, 31, 32, 33, 64, 100):
        check(f"length {length}, 2 x 40 channels, 16 states", 2, length, 40, 16)
    for width in (1, 15, 16, 17, 64, 65, 130):
        check(f"{width} channels, 16 states", 1, 50, width, 16)
    for states in (1, 3, 8, 17, 32):
        check(f"20 channels, {states} states", 2, 45, 20, states)
    for given in ((), ("D",), ("z",), ("bias",), ("state",)):
        check(f"only {' '.join(given) or 'the arguments that must be'}", 2, 40, 24, 16, given=given)
    check("no softplus", 2, 40, 24, 16, given=("D", "z", "state"), softplus=False)
    check("contiguous, the last state not in the loss", 2, 40, 24, 16, strided=False, last=False)
    check("steps up to e^30 and down to e^-30", 1, 40, 24, 16, scale=10.0, tolerance=2e-5)
    check("length 3000", 1, 3000, 70, 16, threads=3)
    check_threads()
    check_refusals()
    finish()


if __name__ == "__main__":
    main()
