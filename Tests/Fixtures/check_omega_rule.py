"""Checks the fused Omega rule and polynomial features against float64 references differentiated by autograd.

    python Tests/Fixtures/check_omega_rule.py libMartletKernels.so

The rule's reference runs token by token with the memory of every token written out and inner gradients by autograd. Prints the
worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import itertools
import math
import sys

import torch

from kernel_errors import error, finish, report


def rule(q, k, v, alpha, eta, gamma, theta, w, s, chunk, squared):
    """Token by token; the objective's gradient by autograd, at the memory that stood at the start of the token's chunk."""
    length, window = q.shape[2], gamma.shape[3]
    before = k.shape[2] - length
    w = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=q.dtype) if w is None else w
    s = torch.zeros_like(w) if s is None else s
    outputs, start = [], w
    for t in range(length):
        if t % chunk == 0:
            start = w
        at = start if start.requires_grad else start.detach().requires_grad_()
        loss = 0
        for age in range(window):
            i = before + t - age
            if i < 0:
                continue
            read = (k[:, :, i, :, None] * at).sum(-2)
            term = 0.5 * (read - v[:, :, i]).square().sum(-1) if squared else -(read * v[:, :, i]).sum(-1)
            loss = loss + (gamma[:, :, t, age] * term).sum()
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        s = -gradient if theta is None else theta[:, :, t, None, None] * s - gradient
        w = alpha[:, :, t, None, None] * w + eta[:, :, t, None, None] * s
        outputs.append((q[:, :, t, :, None] * w).sum(-2))
    return torch.stack(outputs, 2), w, s


def check_rule(name, batch, heads, length, features, dv, window, chunk, momentum=False, squared=True, given=True, before=False, threads=1,
               inside=True, tolerance=1e-5):
    generator = torch.Generator().manual_seed(length + window)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    rows = length + (window - 1 if before else 0)
    q, k, v = (
        draw(batch, n, heads, width).transpose(1, 2) if inside else draw(batch, heads, n, width)
        for n, width in ((length, features), (rows, features), (rows, dv))
    )
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    inputs = {
        "q": q, "k": k, "v": v, "alpha": torch.sigmoid(draw(batch, heads, length) + 2), "eta": torch.sigmoid(draw(batch, heads, length)) / window,
        "gamma": torch.sigmoid(draw(batch, heads, length, window)), "theta": torch.sigmoid(draw(batch, heads, length)) if momentum else None,
        "W": draw(batch, heads, features, dv) if given else None, "S": draw(batch, heads, features, dv) if given and momentum else None,
    }
    leaves = {n: None if x is None else x.detach().requires_grad_() for n, x in inputs.items()}
    doubles = {n: None if x is None else x.detach().double().requires_grad_() for n, x in inputs.items()}
    ro, rw, rs = rule(*doubles.values(), chunk, squared)
    torch.set_num_threads(threads)
    o, w, s = torch.ops.martlet.omega_rule(*leaves.values(), chunk, squared)
    with torch.no_grad():
        plain = torch.ops.martlet.omega_rule(*leaves.values(), chunk, squared)
    assert torch.equal(plain[0], o) and torch.equal(plain[1], w) and o.transpose(1, 2).is_contiguous()
    errors = {"o": error(o.detach(), ro.detach()), "W": error(w.detach(), rw.detach())}
    do, dw, ds = draw(*o.shape), draw(*w.shape), draw(*w.shape)
    loss, wanted = (o * do).sum() + (w * dw).sum(), (ro * do.double()).sum() + (rw * dw.double()).sum()
    if momentum:
        errors["S"] = error(s.detach(), rs.detach())
        loss, wanted = loss + (s * ds).sum(), wanted + (rs * ds.double()).sum()
    loss.backward()
    torch.set_num_threads(1)
    wanted.backward()
    for n, x in leaves.items():
        if x is not None:
            errors["d" + n] = error(x.grad, torch.zeros_like(doubles[n]) if doubles[n].grad is None else doubles[n].grad)
    report(name, errors, tolerance)


def monomials(x, coefficients, degree):
    """All monomials of degree <= p by combinations, weighted so that f(x) . f(y) = sum_i a_i (x . y)^i."""
    columns = []
    for n in range(degree + 1):
        for picks in itertools.combinations_with_replacement(range(x.shape[-1]), n):
            count = math.factorial(n) / math.prod(math.factorial(picks.count(i)) for i in set(picks))
            column = torch.ones_like(x[..., 0])
            for i in picks:
                column = column * x[..., i]
            columns.append(column * (coefficients[n] * count).sqrt())
    return torch.stack(columns, -1)


def check_features(name, shape, degree, inside=True):
    generator = torch.Generator().manual_seed(degree)
    batch, heads, length, width = shape
    x = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2) if inside else torch.randn(shape, generator=generator)
    a = torch.rand(degree + 1, generator=generator) + 0.1
    leaves = [x.detach().requires_grad_(), a.requires_grad_()]
    doubles = [y.detach().double().requires_grad_() for y in leaves]
    found, wanted = torch.ops.martlet.polynomial_features(*leaves), monomials(*doubles, degree)
    assert found.shape[-1] == math.comb(width + degree, degree)
    gradient = torch.randn(found.shape, generator=generator)
    (found * gradient).sum().backward()
    (wanted * gradient.double()).sum().backward()
    errors = {"f": error(found.detach(), wanted.detach())}
    for n, leaf, double in zip(("dx", "da"), leaves, doubles):  # a constant doesn't depend on x
        errors[n] = error(leaf.grad, torch.zeros_like(double) if double.grad is None else double.grad)
    report(name, errors)


def check_refusals():
    x = torch.randn(1, 2, 5, 4)
    gate, gates = torch.rand(1, 2, 5), torch.rand(1, 2, 5, 3)
    f = torch.ops.martlet.omega_rule
    for name, call in {
        "key of another width": lambda: f(x, x[..., :3], x, gate, gate, gates),
        "key one token longer": lambda: f(x, torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4), gate, gate, gates),
        "rate of another shape": lambda: f(x, x, x, gate, gate[..., :4], gates),
        "state of another shape": lambda: f(x, x, x, gate, gate, gates, None, x),
        "float64": lambda: f(x.double(), x.double(), x.double(), gate, gate, gates),
        "chunk 0": lambda: f(x, x, x, gate, gate, gates, chunk=0),
        "features without coefficients": lambda: torch.ops.martlet.polynomial_features(x, torch.ones(0)),
        "features of integers": lambda: torch.ops.martlet.polynomial_features(x.long(), torch.ones(3)),
    }.items():
        try:
            call()
            report(f"refuses {name}", {"accepted": 1.0})
        except (RuntimeError, ValueError):
            report(f"refuses {name}", {"accepted": 0.0})


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)
    for momentum, squared in ((False, True), (True, True), (False, False), (True, False)):
        kind = f"momentum {momentum}, squared {squared}"
        for chunk, window, length in ((1, 1, 9), (1, 4, 20), (4, 4, 39), (8, 3, 41), (8, 12, 40), (16, 4, 65), (16, 1, 33), (5, 7, 23), (64, 4, 70), (3, 20, 31)):
            check_rule(f"{kind}, b {chunk}, c {window}, length {length}", 2, 3, length, 10, 7, window, chunk, momentum, squared)
        check_rule(f"{kind}, no state, one token", 1, 2, 1, 5, 16, 3, 8, momentum, squared, given=False)
        check_rule(f"{kind}, tokens before", 1, 2, 21, 6, 5, 5, 4, momentum, squared, before=True)
        check_rule(f"{kind}, contiguous, length 300", 1, 2, 300, 21, 33, 4, 4, momentum, squared, inside=False, threads=2)
        check_rule(f"{kind}, length 290, 91 x 64", 1, 1, 290, 91, 64, 4, 8, momentum, squared)
    for degree, width in ((0, 3), (1, 5), (2, 1), (2, 12), (2, 16), (3, 6), (4, 4)):
        check_features(f"features of degree {degree}, width {width}", (2, 3, 37, width), degree, inside=width % 2 == 0)
    check_refusals()
    finish()


if __name__ == "__main__":
    main()
