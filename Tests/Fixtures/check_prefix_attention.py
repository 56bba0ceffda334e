"""Checks the prefix attention kernels against masked softmax in float64 differentiated by autograd.

    python Tests/Fixtures/check_prefix_attention.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch

from kernel_errors import error, finish, report


def prefixes(scores, value):
    """o_t = softmax(s_1 ... s_t) v, by rows of the masked matrix; 0 where no score is above -inf."""
    length = scores.shape[-1]
    rows = []
    for start in range(0, length, 1024):  # in blocks of rows, so that long sequences fit
        end = min(length, start + 1024)
        future = torch.arange(end)[None, :] > torch.arange(start, end)[:, None]
        s = scores[:, :, None, :end].expand(-1, -1, end - start, -1).masked_fill(future, -float("inf"))
        empty = (s == -float("inf")).all(-1, keepdim=True)
        rows.append(s.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0) @ value[:, :, :end])
    return torch.cat(rows, 2) if rows else value


def tensor(shape, layout, generator):
    batch, heads, length, width = shape
    if layout == "heads inside":
        x = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
    elif layout == "slice of a wider tensor":
        x = torch.randn(batch, length, heads, width + 3, generator=generator)[..., 1 : 1 + width].transpose(1, 2)
    elif layout == "transposed":
        x = torch.randn(batch, heads, width, length, generator=generator).transpose(2, 3)
    else:
        x = torch.randn(shape, generator=generator)
    return x.requires_grad_()


def check(name, batch, heads, length, width, scale=1.0, layout="heads inside", absent=(), threads=1, expanded_gradient=False, rising=0.0,
          tolerance=1e-5, needs=(True, True)):
    generator = torch.Generator().manual_seed(length + width)
    scores = torch.randn(batch, length, heads, generator=generator) * scale + rising * torch.arange(length)[None, :, None]
    for t in absent:
        scores[:, t] = -float("inf")
    scores = scores.transpose(1, 2).requires_grad_(needs[0])
    value = tensor((batch, heads, length, width), layout, generator).detach().requires_grad_(needs[1])
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in (scores, value)]
    r = prefixes(*doubles)
    torch.set_num_threads(threads)
    o, m, c, a = torch.ops.martlet.prefix_attention(scores, value)
    assert o.transpose(1, 2).is_contiguous() and not m.requires_grad
    with torch.no_grad():
        assert torch.equal(torch.ops.martlet.prefix_attention(scores, value)[0], o)
    do = torch.randn(1, 1, 1, 1, generator=generator).expand(o.shape) if expanded_gradient else torch.randn(o.shape, generator=generator)
    errors = {"o": error(o.detach(), r.detach())}
    if length:
        errors["last"] = error((a / c[..., None]).detach(), r[:, :, -1].detach())
        errors["m"] = error(m.detach(), doubles[0].detach().max(-1).values)
    (o * do).sum().backward()
    torch.set_num_threads(1)
    (r * do.double()).sum().backward()
    for n, x, y in zip(("s", "v"), (scores, value), doubles):
        if not x.requires_grad:
            assert x.grad is None
        elif not y.numel():
            errors["d" + n] = error(x.grad, y)
        elif y.grad.abs().max() < 1e-12:  # one token: the output is its value whatever its score
            errors["d" + n] = x.grad.abs().max().item()
        else:
            errors["d" + n] = error(x.grad, y.grad)
    report(name, errors, tolerance)


def check_continued():
    generator = torch.Generator().manual_seed(3)
    scores, value = 5 * torch.randn(2, 3, 90, generator=generator), torch.randn(2, 3, 90, 20, generator=generator)
    whole = torch.ops.martlet.prefix_attention(scores, value)
    wanted = prefixes(scores.double(), value.double())
    for cut in (1, 37, 89):
        first = torch.ops.martlet.prefix_attention(scores[:, :, :cut], value[:, :, :cut])
        rest = torch.ops.martlet.prefix_attention(scores[:, :, cut:], value[:, :, cut:], *first[1:])
        errors = {"o": error(rest[0], wanted[:, :, cut:])}
        errors |= {n: error(x, y.double()) for n, x, y in zip("mca", rest[1:], whole[1:])}
        # The gradients of what follows, with what precedes held fixed.
        leaves = [x[:, :, cut:].clone().requires_grad_() for x in (scores, value)]
        doubles = [x.detach().double().requires_grad_() for x in leaves]
        do = torch.randn(rest[0].shape, generator=generator)
        found = torch.autograd.grad(torch.ops.martlet.prefix_attention(*leaves, *first[1:])[0], leaves, do)
        full = prefixes(*(torch.cat([x[:, :, :cut].double(), y], 2) for x, y in zip((scores, value), doubles)))[:, :, cut:]
        errors |= {n: error(x, y) for n, x, y in zip(("ds", "dv"), found, torch.autograd.grad(full, doubles, do.double()))}
        report(f"continued after {cut}", errors)
    state = [torch.full((2, 3), -float("inf")), torch.zeros(2, 3), torch.zeros(2, 3, 20)]
    steps = [torch.ops.martlet.prefix_attention_step(scores[:, :, t], value[:, :, t], *state) for t in range(90)]
    report("steps", {"o": error(torch.stack(steps, 2), wanted)} | {n: error(x, y.double()) for n, x, y in zip("mca", state, whole[1:])})


def check_refusals():
    s, v = torch.randn(1, 2, 5), torch.randn(1, 2, 5, 4)
    f = torch.ops.martlet.prefix_attention
    for name, call in {
        "scores of another length": lambda: f(s[..., :3], v),
        "float64": lambda: f(s.double(), v.double()),
        "a part of the state": lambda: f(s, v, s[..., 0]),
        "state of another width": lambda: f(s, v, s[..., 0], s[..., 0], torch.zeros(1, 2, 3)),
        "a state that is differentiated": lambda: f(s, v, s[..., 0], s[..., 0], torch.zeros(1, 2, 4, requires_grad=True)),
    }.items():
        try:
            call()
            report(f"refuses {name}", {"accepted": 1.0})
        except RuntimeError:
            report(f"refuses {name}", {"accepted": 0.0})
    y = v.clone().requires_grad_()
    try:
        torch.autograd.grad(f(s, y)[0].sum(), y, create_graph=True)
        report("refuses second derivatives", {"accepted": 1.0})
    except RuntimeError:
        report("refuses second derivatives", {"accepted": 0.0})


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)
    for length in (0, 1, 2, 15, 16, 17, 255, 256, 257, 600):
        check(f"length {length}, 2x3 heads of 20", 2, 3, length, 20)
    for width in (1, 7, 16, 31, 64, 65, 100, 128, 150):
        check(f"width {width}", 1, 2, 300, width)
    for layout in ("plain", "slice of a wider tensor", "transposed"):
        check(f"{layout}, expanded gradient", 2, 2, 70, 24, layout=layout, expanded_gradient=True)
    check("scores x 20", 2, 2, 512, 32, scale=20.0)
    check("scores x 200", 1, 2, 512, 32, scale=200.0)
    check("scores rising by 3 a token", 1, 2, 512, 32, rising=3.0)
    check("scores falling by 3 a token", 1, 2, 512, 32, rising=-3.0)
    check("tokens absent from the start, within and at the end", 1, 2, 300, 32, absent=(0, 1, 2, 40, 41, 298, 299))
    check("only values are differentiated", 1, 2, 300, 32, needs=(False, True))
    check("only scores are differentiated", 1, 2, 300, 32, needs=(True, False))
    check("one head in segments", 1, 1, 4400, 32, threads=3)
    check("one head in segments, scores x 20", 1, 1, 4400, 32, scale=20.0, threads=3)
    check("one head in segments, tokens absent", 1, 1, 4400, 16, absent=tuple(range(1600)) + (4399,), threads=3)
    check_continued()
    check_refusals()
    finish()


if __name__ == "__main__":
    main()
