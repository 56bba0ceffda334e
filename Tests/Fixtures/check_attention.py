"""Checks martlet::attention and martlet::attention_step against a float64 reference with autograd.

Usage: python check_attention.py libMartletKernels.so
Prints the worst relative error (max |a - b| / max |b|) of each result; exits 1 where one exceeds the tolerance.
"""
import itertools
import math
import sys

import torch

torch.ops.load_library(sys.argv[1])
TOLERANCE = 1e-5
worst = {}
failures = []


def note(name, case, got, want, tolerance=TOLERANCE):
    got, want = got.double(), want.double()
    if got.shape != want.shape or got.isnan().any():
        failures.append(f"{name}: shape {tuple(got.shape)} for {tuple(want.shape)}, or NaN, in {case}")
        return
    if want.numel() == 0:
        return
    scale = want.abs().max().item()
    error = (got - want).abs().max().item()
    error = error / scale if scale > 0 else error
    worst[name] = max(worst.get(name, 0.0), error)
    if not error <= tolerance:
        failures.append(f"{name}: {error:.2e} > {tolerance:.0e} in {case}")


def allowed_pairs(L, S, causal, left, right):
    i = torch.arange(L)[:, None] + S - L
    j = torch.arange(S)[None, :]
    allowed = torch.ones(L, S, dtype=torch.bool)
    if causal:
        allowed &= j <= i
    if left >= 0:
        allowed &= j >= i - left
    if right >= 0:
        allowed &= j <= i + right
    return allowed


def reference(q, k, v, mask, causal, left, right, scale):
    G = q.shape[1] // max(k.shape[1], 1)
    k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
    scores = q @ k.transpose(-1, -2) * (scale if scale is not None else q.shape[-1] ** -0.5)
    allowed = allowed_pairs(q.shape[2], k.shape[2], causal, left, right)[None, None]
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    allowed = allowed.expand_as(scores)
    some = allowed.any(-1, keepdim=True)
    weights = torch.where(some, scores.masked_fill(~allowed, -math.inf), torch.zeros_like(scores)).softmax(-1)
    weights = torch.where(allowed, weights, torch.zeros_like(weights))
    lse = scores.masked_fill(~allowed, -math.inf).detach().logsumexp(-1) if k.shape[2] else scores.new_full(scores.shape[:3], -math.inf)
    return weights @ v, lse


def leaves(B, H, Hk, L, S, d, dv, layout, dtype, generator):
    """Three leaves and a function from them to the views that the operator gets."""
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    if layout == "fused":
        assert L == S and H == Hk and d == dv
        leaf = make(B, L, 3, H, d)
        return [leaf], lambda x: [t.transpose(1, 2) for t in x.unbind(2)]
    if layout == "lengthMajor":
        return [make(B, L, H, d), make(B, S, Hk, d), make(B, S, Hk, dv)], lambda *x: [t.transpose(1, 2) for t in x]
    return [make(B, H, L, d), make(B, Hk, S, d), make(B, Hk, S, dv)], lambda *x: list(x)


def check(B, H, Hk, L, S, d, dv, layout="headMajor", masked=False, causal=False, left=-1, right=-1, scale=None,
          dtype=torch.float32, tolerance=TOLERANCE, gradient="random", magnitude=1.0):
    case = dict(locals())
    kind = {torch.float32: "", torch.bfloat16: "bf16 ", torch.float16: "f16 "}[dtype] + ("large scores " if magnitude > 1 else "")
    generator = torch.Generator().manual_seed(B * 7 + L * 3 + S + d)
    sources, views = leaves(B, H, Hk, L, S, d, dv, layout, dtype, generator)
    sources = [s * magnitude for s in sources]
    mask = None
    if masked:
        mask = torch.rand(B, S, generator=generator) < 0.7
        if S:
            mask[-1] = False  # one sequence that is all padding
    ours = [s.clone().requires_grad_() for s in sources]
    theirs = [s.double().requires_grad_() for s in sources]
    out, lse = torch.ops.martlet.attention(*views(*ours), mask, causal, left, right, scale)
    want, want_lse = reference(*views(*theirs), mask, causal, left, right, scale)
    if not out.transpose(1, 2).is_contiguous():
        failures.append(f"out.transpose(1, 2) is not contiguous in {case}")
    if out.dtype != dtype or lse.dtype != torch.float32:
        failures.append(f"dtypes {out.dtype}, {lse.dtype} in {case}")
    note(kind + "out", case, out.detach(), want.detach(), tolerance)
    infinite = want_lse == -math.inf
    if not torch.equal(infinite, lse == -math.inf):
        failures.append(f"rows without keys differ in {case}")
    else:
        note(kind + "logsumexp", case, lse.masked_fill(infinite, 0), want_lse.masked_fill(infinite, 0), tolerance)
        rows = infinite.unsqueeze(-1).expand_as(out)
        if out[rows].abs().sum() != 0:
            failures.append(f"a row without keys is not 0 in {case}")
    if gradient == "expanded":
        out.sum().backward()
        want.sum().backward()
    else:
        g = torch.randn(want.shape, generator=generator, dtype=torch.float64).to(dtype)
        out.backward(g)
        want.backward(g.double())
    if gradient == "expanded" and not masked:  # the exact gradient of query and key is 0 here; only the values' says something
        note("grad (expanded)", case, ours[-1].grad, theirs[-1].grad, tolerance)
        return
    for name, a, b in zip(["grad qkv"] if layout == "fused" else ["grad query", "grad key", "grad value"], ours, theirs):
        note(kind + name, case, a.grad, b.grad, tolerance)


for L, S in [(1, 1), (1, 7), (5, 3), (16, 16), (63, 65), (64, 64), (130, 127), (200, 333), (333, 200), (257, 257), (700, 700)]:
    for causal, (left, right) in itertools.product([False, True], [(-1, -1), (10, -1), (70, 3), (0, 0), (-1, 40), (150, 150)]):
        for masked in (False, True):
            check(2, 4, 2, L, S, 16, 16, causal=causal, left=left, right=right, masked=masked)
for d, dv in [(1, 1), (3, 5), (8, 8), (20, 33), (32, 64), (64, 32), (80, 80), (128, 128), (200, 17)]:
    check(1, 2, 1, 150, 190, d, dv, "lengthMajor", causal=True)
    check(1, 2, 2, 70, 70, d, dv, "lengthMajor", masked=False, scale=0.3)
for B, H, Hk in [(1, 1, 1), (1, 3, 1), (1, 3, 3), (3, 5, 5), (2, 8, 2), (1, 6, 1), (5, 4, 4)]:
    check(B, H, Hk, 300, 300, 32, 32, "lengthMajor", causal=True)
    check(B, H, Hk, 300, 300, 32, 32, masked=True)
for L in (1, 64, 100, 513):
    check(2, 3, 3, L, L, 32, 32, "fused", causal=True)
    check(2, 3, 3, L, L, 20, 20, "fused", masked=True)
check(1, 1, 1, 2500, 2500, 64, 64, causal=True)
check(1, 2, 2, 2300, 2300, 32, 32, causal=True, left=300)
check(1, 2, 2, 300, 300, 32, 32, causal=True, scale=-0.5)
check(1, 2, 2, 300, 300, 32, 32, causal=True, scale=0.0)
check(1, 2, 2, 300, 300, 64, 64, causal=True, magnitude=4.0, tolerance=5e-5)  # scores to ±100: f32 scores carry 1e-5 absolute
check(2, 2, 2, 90, 90, 32, 32, gradient="expanded", causal=True)
for B, H, L, S in [(0, 2, 4, 4), (2, 2, 0, 4), (2, 2, 4, 0), (2, 0, 4, 4)]:
    check(B, H, H, L, S, 8, 8)
for dtype, tolerance in [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)]:
    check(2, 4, 2, 150, 150, 32, 32, "lengthMajor", causal=True, dtype=dtype, tolerance=tolerance)

# The same result each run, bit for bit.
q, k, v = (torch.randn(1, 2, 900, 32, requires_grad=True) for _ in range(3))
runs = []
for _ in range(4):
    out, _ = torch.ops.martlet.attention(q, k, v, None, True)
    runs.append([out.detach(), *torch.autograd.grad(out.sin().sum(), (q, k, v))])
if not all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run)):
    failures.append("two runs differ")

# NaN in, NaN out; only where it may be seen.
bad = k.detach().clone()
bad[0, 0, 500, 3] = math.nan
out, _ = torch.ops.martlet.attention(q.detach(), bad, v.detach(), None, True)
if out[0, 0, :448].isnan().any() or not out[0, 0, 500:].isnan().all() or out[0, 1].isnan().any():
    failures.append("NaN in a key does not show where it must")


def expect_error(what, call):
    try:
        call()
        failures.append(f"no error for {what}")
    except RuntimeError:
        pass


A = torch.ops.martlet.attention
x = torch.randn(2, 4, 8, 16)
expect_error("three dimensions", lambda: A(x[0], x, x))
expect_error("another batch", lambda: A(x, x[:1], x))
expect_error("heads that don't divide", lambda: A(x, x[:, :3], x[:, :3]))
expect_error("another head width", lambda: A(x, x[..., :8], x))
expect_error("values of another length", lambda: A(x, x, x[:, :, :5]))
expect_error("a mask of another shape", lambda: A(x, x, x, torch.ones(2, 7, dtype=torch.bool)))
expect_error("a float mask", lambda: A(x, x, x, torch.ones(2, 8)))
expect_error("float64", lambda: A(x.double(), x.double(), x.double()))
expect_error("mixed types", lambda: A(x, x.bfloat16(), x))
y = x.clone().requires_grad_()
first = torch.autograd.grad(A(y, y, y)[0].pow(2).sum(), y, create_graph=True)[0]
expect_error("second derivatives", lambda: first.sum().backward())


def step_case(B, H, Hk, S, d, dv, left=-1, scale=None, dtype=torch.float32, layout="headMajor", tolerance=TOLERANCE, lengths=None):
    case = dict(locals())
    generator = torch.Generator().manual_seed(S + d)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    q = make(B, H, d)
    if layout == "headMajor":
        k, v = make(B, Hk, S, d), make(B, Hk, S, dv)
    else:
        k, v = make(B, S, Hk, d).transpose(1, 2), make(B, S, Hk, dv).transpose(1, 2)
    if lengths is None:
        lengths = torch.randint(0, S + 1, (B,), generator=generator)
        lengths[0] = S
    else:
        lengths = torch.tensor(lengths)
    for b in range(B):  # what lies beyond a row's length must not be read into the result
        k[b, :, lengths[b]:] = math.nan
        v[b, :, lengths[b]:] = math.nan
    got = torch.ops.martlet.attention_step(q, k, v, lengths, left, scale)
    want = torch.zeros(B, H, dv, dtype=torch.float64)
    for b in range(B):
        n = int(lengths[b])
        if n:
            want[b] = reference(q[b:b + 1, :, None].double(), k[b:b + 1, :, :n].double(), v[b:b + 1, :, :n].double(), None, True, left, -1, scale)[0][0, :, 0]
    note("step" + (" bf16" if dtype == torch.bfloat16 else ""), case, got, want, tolerance)
    if got.dtype != dtype:
        failures.append(f"step returns {got.dtype} in {case}")


for S in (1, 2, 15, 16, 17, 63, 64, 65, 300, 1000, 5000):
    for H, Hk in [(1, 1), (4, 4), (8, 2), (6, 1)]:
        for layout in ("headMajor", "lengthMajor"):
            step_case(2, H, Hk, S, 32, 32, layout=layout)
    step_case(1, 2, 2, S, 64, 64, left=10)
    step_case(3, 4, 2, S, 20, 7, left=100, scale=0.7)
for d, dv in [(1, 1), (3, 70), (16, 128), (80, 80), (256, 256)]:
    step_case(2, 4, 2, 333, d, dv)
step_case(2, 4, 2, 2000, 64, 64, dtype=torch.bfloat16, tolerance=1e-2)
step_case(2, 4, 2, 300, 20, 20, dtype=torch.bfloat16, tolerance=1e-2)
step_case(2, 4, 2, 100, 32, 32, lengths=[0, 100])
T = torch.ops.martlet.attention_step
c = torch.randn(2, 2, 8, 16)
expect_error("a length past the cache", lambda: T(torch.randn(2, 2, 16), c, c, torch.tensor([8, 9])))
expect_error("a negative length", lambda: T(torch.randn(2, 2, 16), c, c, torch.tensor([8, -1])))
expect_error("int32 lengths", lambda: T(torch.randn(2, 2, 16), c, c, torch.tensor([8, 8], dtype=torch.int32)))
expect_error("mixed types", lambda: T(torch.randn(2, 2, 16), c.bfloat16(), c, torch.tensor([8, 8])))

for name, error in worst.items():
    print(f"{name:24} {error:.2e}")
for failure in failures[:20]:
    print("FAILED", failure)
print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
