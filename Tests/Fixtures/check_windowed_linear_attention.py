"""Checks the fused kernels of windowed linear attention against float64 references differentiated by autograd.

    python Tests/Fixtures/check_windowed_linear_attention.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import functools
import sys

import torch

import kernel_errors
from kernel_errors import finish, report

# What vanishes (no key outside a window: the features take no part) is compared with 1.
error = functools.partial(kernel_errors.error, vanishing=1e-9)


def masks(queries, keys, window, blocks, position):
    i = torch.arange(keys - queries, keys)[:, None] + position
    j = torch.arange(keys)[None] + position
    low = (i // window - 1) * window if blocks else i - window + 1
    return (j <= i) & (j >= low), j < low


def hybrid(q, k, v, fq, fk, g, window, blocks, scale, state=None, normalizer=None, position=0):
    inside, before = masks(q.shape[2], k.shape[2], window, blocks, position)
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~inside, -torch.inf)
    weights = g[None, :, None, None] * torch.exp(s - s.amax(-1, keepdim=True)) + (fq @ fk.transpose(-1, -2)) * before
    top, bottom = weights @ v, weights.sum(-1, keepdim=True)
    if state is not None:
        top = top + fq @ state
        bottom = bottom + fq @ normalizer[..., None]
    return top / bottom


def hedgehog(x, a):
    y = torch.einsum("bhld,hdf->bhlf", x, a)
    return torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1).clamp(min=1e-12)


def tensor(shape, layout, generator, positive=False):
    batch, heads, length, width = shape
    if layout == "heads inside":
        x = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
    elif layout == "slice":
        x = torch.randn(batch, length, heads, width + 3, generator=generator)[..., 1 : 1 + width].transpose(1, 2)
    else:
        x = torch.randn(shape, generator=generator)
    return (x.softmax(-1) if positive else x).detach().requires_grad_()


def check(name, batch, heads, length, d, dv, features, window, blocks=False, layout="heads inside", threads=1, equal_keys=False):
    generator = torch.Generator().manual_seed(length + 7 * window)
    q, k = (tensor((batch, heads, length, d), layout, generator) for _ in range(2))
    if equal_keys:  # every maximum is shared
        with torch.no_grad():
            k[:] = k[:, :, :1]
    v = tensor((batch, heads, length, dv), layout, generator)
    fq, fk = (tensor((batch, heads, length, features), layout, generator, positive=True) for _ in range(2))
    g = (torch.rand(heads, generator=generator) * 0.8 + 0.1).requires_grad_()
    leaves = {"q": q, "k": k, "v": v, "fq": fq, "fk": fk, "g": g}
    doubles = {n: x.detach().double().requires_grad_() for n, x in leaves.items()}
    scale = d**-0.5
    wanted = hybrid(*doubles.values(), window, blocks, scale) if length else doubles["v"]
    torch.set_num_threads(threads)
    o = torch.ops.martlet.windowed_linear_attention(*leaves.values(), window, blocks)
    assert o.transpose(1, 2).is_contiguous()
    with torch.no_grad():
        assert torch.equal(torch.ops.martlet.windowed_linear_attention(*leaves.values(), window, blocks), o)
    do = torch.randn(o.shape, generator=generator)
    errors = {"o": error(o.detach(), wanted.detach())}
    if length:
        (o * do).sum().backward()
        (wanted * do.double()).sum().backward()
        # Which of equal keys is the largest, rounding decides: only the sum over them is the same.
        total = lambda n, x: x.sum(2) if equal_keys and n == "k" else x
        errors |= {"d" + n: error(total(n, x.grad), total(n, doubles[n].grad)) for n, x in leaves.items() if n != "g"}
        errors["dg"] = error(g.grad, doubles["g"].grad)
    torch.set_num_threads(1)
    report(name, errors)


def check_continuation(window, blocks, cut, length=203):
    """A second part that is given the window's keys and the sums of what stood before them."""
    generator = torch.Generator().manual_seed(cut)
    d, dv, features, scale = 20, 24, 12, 20**-0.5
    q, k = (tensor((2, 3, length, d), "heads inside", generator).detach() for _ in range(2))
    v = tensor((2, 3, length, dv), "heads inside", generator).detach()
    fq, fk = (tensor((2, 3, length, features), "plain", generator, positive=True).detach() for _ in range(2))
    g = torch.rand(3, generator=generator) + 0.1
    whole = hybrid(*(x.double() for x in (q, k, v, fq, fk, g)), window, blocks, scale)
    first = max(0, (cut // window - 1) * window if blocks else cut - window)
    state = fk[:, :, :first].transpose(-1, -2) @ v[:, :, :first]
    o = torch.ops.martlet.windowed_linear_attention(
        q[:, :, cut:], k[:, :, first:], v[:, :, first:], fq[:, :, cut:], fk[:, :, first:], g, window, blocks, None, state,
        fk[:, :, :first].sum(2), first)
    report(f"continued at {cut}, window {window}{', blocks' if blocks else ''}", {"o": error(o, whole[:, :, cut:])})


def check_features():
    for length, heads, d, f, layout in ((1, 2, 8, 5, "plain"), (70, 3, 20, 16, "heads inside"), (130, 2, 64, 64, "slice"), (2100, 1, 12, 9, "plain")):
        generator = torch.Generator().manual_seed(length)
        x = tensor((2, heads, length, d), layout, generator)
        a = torch.randn(heads, d, f, generator=generator).requires_grad_()
        xd, ad = (t.detach().double().requires_grad_() for t in (x, a))
        phi, wanted = torch.ops.martlet.hedgehog_features(x, a), hedgehog(xd, ad)
        upstream = torch.randn(phi.shape, generator=generator)
        (phi * upstream).sum().backward()
        (wanted * upstream.double()).sum().backward()
        report(f"Hedgehog features, length {length}, {heads} heads, {d} to {f}",
               {"phi": error(phi.detach(), wanted.detach()), "dx": error(x.grad, xd.grad), "dA": error(a.grad, ad.grad)})


def check_step(window, blocks, rectified, shared, affine, length=41):
    generator = torch.Generator().manual_seed(length)
    batch, heads, d, dv, f = 2, 4, 12, 20, 6
    q = torch.randn(batch, heads, length, d, generator=generator)
    k = torch.randn(batch, shared, length, d, generator=generator)
    v = torch.randn(batch, shared, length, dv, generator=generator)
    aq, ak = (torch.randn(heads, d, f, generator=generator) for _ in range(2))
    bq, bk = (torch.randn(heads, f, generator=generator) if rectified else None for _ in range(2))
    g = torch.rand(heads, generator=generator) * 0.8 + 0.1
    features = f if rectified else 2 * f
    wide = lambda x: x.repeat_interleave(heads // shared, 1).double()

    def phi(x, a, b):
        if not rectified:
            return hedgehog(x, a.double())
        return (torch.einsum("bhld,hdf->bhlf", x, a.double()) + b.double()[None, :, None]).clamp(min=1e-12)

    factor = (1 - g) if affine else None
    fq = phi(q.double(), aq, bq) * (1 if factor is None else factor.double()[None, :, None, None])
    wanted = hybrid(q.double(), wide(k), wide(v), fq, phi(wide(k), ak, bk), g.double(), window, blocks, d**-0.5)
    places = window * (2 if blocks else 1)
    ring, values = torch.zeros(batch, shared, places, d), torch.zeros(batch, shared, places, dv)
    memory, normalizer = torch.zeros(batch, heads, features, dv), torch.zeros(batch, heads, features)
    worst = 0.0
    for t in range(length):
        # The second sequence began three tokens later.
        at = torch.tensor([t, max(0, t - 3)])
        rows = at.tolist()
        token = lambda x: torch.stack([x[0, :, rows[0]], x[1, :, rows[1]]])
        if t in (1, 2, 3):  # keep the second sequence at its first token
            ring[1], values[1], memory[1], normalizer[1] = 0, 0, 0, 0
        o = torch.ops.martlet.windowed_linear_attention_step(
            token(q), token(k), token(v), aq, ak, bq, bk, g, factor, ring, values, memory, normalizer, at, window, blocks, d**-0.5)
        worst = max(worst, error(o, torch.stack([wanted[0, :, rows[0]], wanted[1, :, rows[1]]])))
    kind = "rectified" if rectified else "Hedgehog"
    report(f"step, window {window}{', blocks' if blocks else ''}, {kind}, {shared} key heads{', affine' if affine else ''}", {"o": worst})


def check_refusals():
    x, g = torch.randn(1, 2, 5, 4), torch.ones(2)
    f = torch.ops.martlet.windowed_linear_attention
    for name, call in {
        "key of another width": lambda: f(x, x[..., :3], x, x, x, g, 4),
        "fewer keys than queries": lambda: f(x, x[:, :, :4], x[:, :, :4], x, x[:, :, :4], g, 4),
        "float64": lambda: f(*[x.double()] * 5, g, 4),
        "window 0": lambda: f(*[x] * 5, g, 0),
        "factor of another shape": lambda: f(*[x] * 5, torch.ones(3), 4),
        "state without normalizer": lambda: f(*[x] * 5, g, 4, False, None, torch.zeros(1, 2, 4, 4)),
        "map of another shape": lambda: torch.ops.martlet.hedgehog_features(x, torch.randn(2, 3, 4)),
    }.items():
        try:
            call()
            report(f"refuses {name}", {"accepted": 1.0})
        except (RuntimeError, ValueError):
            report(f"refuses {name}", {"accepted": 0.0})


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)
    for blocks in (False, True):
        kind = ", blocks" if blocks else ""
        for length, window in ((0, 8), (1, 8), (7, 8), (8, 8), (9, 8), (63, 16), (64, 64), (65, 64), (128, 64), (200, 64), (300, 100), (257, 1), (90, 500), (700, 256)):
            check(f"length {length}, window {window}{kind}, 2x3 heads, 20, 33, 24", 2, 3, length, 20, 33, 24, window, blocks)
        check(f"contiguous, width 1{kind}", 1, 2, 100, 1, 1, 1, 5, blocks, layout="plain")
        check(f"slices, two threads{kind}", 1, 4, 330, 64, 64, 128, 64, blocks, layout="slice", threads=2)
        check(f"equal keys{kind}", 1, 2, 100, 16, 16, 16, 8, blocks, equal_keys=True)
        for window, cut in ((16, 5), (16, 16), (16, 100), (64, 101), (7, 150), (50, 100)):
            check_continuation(window, blocks, cut)
    check_features()
    for window, blocks, rectified, shared, affine in (
        (8, False, False, 4, False), (8, True, False, 2, False), (5, False, True, 2, True), (5, True, True, 1, True), (64, False, False, 2, False)):
        check_step(window, blocks, rectified, shared, affine)
    check_refusals()
    finish()


if __name__ == "__main__":
    main()
