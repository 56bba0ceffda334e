"""Checks the fused gated linear attention kernels against float64 references differentiated by autograd.

    python Tests/Fixtures/check_gated_linear_attention.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch

from kernel_errors import error, finish, report


def recurrence(q, k, v, g, state, scale):
    """S_t = Diag(e^{g_t}) S_{t-1} + k_t' v_t, o_t = scale q_t S_t, token by token."""
    batch, heads, length, width = q.shape
    state = torch.zeros(batch, heads, width, v.shape[-1], dtype=q.dtype) if state is None else state
    if g is not None:
        g = g.view(1, heads, 1, 1) if g.dim() == 1 else g.unsqueeze(-1) if g.dim() == 3 else g
        g = g.expand(batch, heads, length, width)
    outputs = []
    for t in range(length):
        if g is not None:
            state = g[:, :, t].exp().unsqueeze(-1) * state
        state = state + k[:, :, t].unsqueeze(-1) * v[:, :, t].unsqueeze(-2)
        outputs.append(scale * (q[:, :, t].unsqueeze(-2) @ state).squeeze(-2))
    output = torch.stack(outputs, 2) if outputs else v.new_zeros(v.shape)
    return output, state


def packed_recurrence(q, k, v, g, state, scale, offsets):
    """The recurrence of several sequences that q, k, v hold end to end, each from its own state."""
    outputs, states = [], []
    for i, (a, b) in enumerate(zip(offsets, offsets[1:])):
        gate = g if g is None or g.dim() == 1 else g[:, :, a:b]
        start = None if state is None else state[i : i + 1]
        o, s = recurrence(q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], gate, start, scale)
        outputs.append(o)
        states.append(s)
    return torch.cat(outputs, 2), torch.cat(states)


def normalised(q, k, v, causal, eps, mask):
    weights = q @ k.transpose(-1, -2)
    if causal:
        weights = weights.tril()
    if mask is not None:
        weights = weights * mask[:, None, None, :].to(weights.dtype)
    return (weights @ v) / (weights.sum(-1, keepdim=True) + eps)


def tensor(shape, layout, generator, positive=False, dtype=torch.float32):
    batch, heads, length, width = shape
    if layout == "heads inside":
        x = torch.randn(batch, length, heads, width, generator=generator).transpose(1, 2)
    elif layout == "slice of a wider tensor":
        x = torch.randn(batch, length, heads, width + 3, generator=generator)[..., 1 : 1 + width].transpose(1, 2)
    else:
        x = torch.randn(shape, generator=generator)
    if positive:
        x = torch.nn.functional.elu(x) + 1
    return x.to(dtype).requires_grad_()


def check_gated(name, batch, heads, length, dk, dv, gate, rate=0.1, layout="heads inside", with_state=True, dtype=torch.float32,
                expanded_gradient=False, closed=(), tolerance=1e-5, scale=None, chunk=64,
                state_in_loss=True, threads=1, constant=None, offsets=None):
    generator = torch.Generator().manual_seed(hash((batch, heads, length, dk, dv)) % 1000)
    q, k = (tensor((batch, heads, length, dk), layout, generator, dtype=dtype) for _ in range(2))
    v = tensor((batch, heads, length, dv), layout, generator, dtype=dtype)
    g = None
    if gate == "channel":
        g = (-rate * torch.rand(batch, length, heads, dk, generator=generator)).transpose(1, 2)
    elif gate == "token":
        g = -rate * torch.rand(batch, heads, length, generator=generator)
    elif gate == "head":
        g = -rate * torch.rand(heads, generator=generator)
    if g is not None:
        g = g.clone() if constant is None else torch.full_like(g, constant)
        for t in closed:
            g[:, :, t] = -float("inf")
        g.requires_grad_()
    count = batch if offsets is None else len(offsets) - 1
    packing = None if offsets is None else torch.tensor(offsets)
    s = torch.randn(count, heads, dk, dv, generator=generator).requires_grad_() if with_state else None
    inputs = {"q": q, "k": k, "v": v, "g": g, "s": s}
    doubles = {n: None if x is None else x.detach().double().requires_grad_() for n, x in inputs.items()}
    factor = dk**-0.5 if scale is None else scale
    ro, rlast = recurrence(*doubles.values(), factor) if offsets is None else packed_recurrence(*doubles.values(), factor, offsets)
    torch.set_num_threads(threads)
    o, last = torch.ops.martlet.gated_linear_attention(q, k, v, g, s, scale, chunk, packing)
    if expanded_gradient:
        do = torch.randn(1, 1, 1, 1, generator=generator).expand(o.shape)
    else:
        do = torch.randn(o.shape, generator=generator)
    dlast = torch.randn(last.shape, generator=generator)
    assert o.transpose(1, 2).is_contiguous() and last.dtype == torch.float32
    errors = {"o": error(o.detach(), ro.detach()), "S": error(last.detach(), rlast.detach())}
    with torch.no_grad():
        plain, plain_last = torch.ops.martlet.gated_linear_attention(q, k, v, g, s, scale, chunk, packing)
    assert torch.equal(plain, o) and torch.equal(plain_last, last)
    ((o.double() * do).sum() + (last * dlast).sum() * state_in_loss).backward()
    torch.set_num_threads(1)
    ((ro * do.double()).sum() + (rlast * dlast.double()).sum() * state_in_loss).backward()
    for n, x in inputs.items():
        if x is not None:
            wanted = doubles[n].grad  # None where the loop ran no step
            errors["d" + n] = error(x.grad, torch.zeros_like(doubles[n]) if wanted is None else wanted)
    report(name, errors, tolerance)


def check_normalised(name, batch, heads, length, dk, dv, causal, masked, layout="heads inside", tolerance=1e-5, threads=1):
    # Of one token, only eps makes the output depend on query and key; a small one leaves gradients that are differences of near equals.
    eps = 1e-6 if length > 1 else 5.0
    generator = torch.Generator().manual_seed(length)
    q, k = (tensor((batch, heads, length, dk), layout, generator, positive=True) for _ in range(2))
    v = tensor((batch, heads, length, dv), layout, generator)
    mask = torch.rand(batch, length, generator=generator) > 0.3 if masked else None
    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.set_num_threads(threads)
    o = torch.ops.martlet.normalized_linear_attention(*leaves, causal, eps, mask)
    r = normalised(*doubles, causal, eps, mask)
    do = torch.randn(o.shape, generator=generator)
    assert o.transpose(1, 2).is_contiguous()
    errors = {"y": error(o.detach(), r.detach())}
    (o * do).sum().backward()
    torch.set_num_threads(1)
    (r * do.double()).sum().backward()
    for n, x, y in zip("qkv", leaves, doubles):
        errors["d" + n] = error(x.grad, y.grad)
    report(name, errors, tolerance)


def check_step():
    generator = torch.Generator().manual_seed(3)
    batch, heads, dk, dv = 2, 3, 20, 33
    for kind in ("none", "head", "token", "channel"):
        state = torch.randn(batch, heads, dk, dv, generator=generator)
        wanted = state.double()
        errors = {"o": 0.0}
        for _ in range(5):
            q, k = (torch.randn(batch, heads, dk, generator=generator) for _ in range(2))
            v = torch.randn(batch, heads, dv, generator=generator)
            shape = {"none": None, "head": (heads,), "token": (batch, heads), "channel": (batch, heads, dk)}[kind]
            g = None if shape is None else -torch.rand(shape, generator=generator)
            o = torch.ops.martlet.gated_linear_attention_step(q, k, v, g, state)
            gate = None if g is None else (g if kind == "head" else g.unsqueeze(2)).double()
            r, wanted = recurrence(*(x.unsqueeze(2).double() for x in (q, k, v)), gate, wanted, dk**-0.5)
            errors["o"] = max(errors["o"], error(o, r.squeeze(2)))
        errors["S"] = error(state, wanted)
        report(f"step, gate {kind}", errors)


def check_refusals():
    x = torch.randn(1, 2, 5, 4)
    f = torch.ops.martlet.gated_linear_attention
    for name, call in {
        "key of another shape": lambda: f(x, x[..., :3], x),
        "gate of another shape": lambda: f(x, x, x, x[..., :2]),
        "state of another shape": lambda: f(x, x, x, None, x),
        "float64": lambda: f(x.double(), x.double(), x.double()),
        "chunk 0": lambda: f(x, x, x, chunk=0),
        "offsets that end early": lambda: f(x, x, x, offsets=torch.tensor([0, 4])),
        "packed batches": lambda: f(*[x.expand(2, -1, -1, -1)] * 3, offsets=torch.tensor([0, 5])),
        "mask of another shape": lambda: torch.ops.martlet.normalized_linear_attention(x, x, x, True, 1e-6, torch.ones(5, dtype=torch.bool)),
    }.items():
        try:
            call()
            report(f"refuses {name}", {"accepted": 1.0})
        except (RuntimeError, ValueError) as refusal:
            report(f"refuses {name}", {"accepted": 0.0})
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(y, x, x)[0].sum(), y)
    try:
        torch.autograd.grad(f(y, x, x)[0].sum(), y, create_graph=True)
        report("refuses second derivatives", {"accepted": 1.0})
    except RuntimeError:
        report("refuses second derivatives", {"accepted": 0.0})


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)  # of the references; cases with fewer heads than threads cut the sequence in segments
    for gate in ("none", "head", "token", "channel"):
        for length in (0, 1, 15, 16, 17, 63, 64, 65, 256, 257, 300):
            check_gated(f"gate {gate}, length {length}, 2x3 heads, 20 x 33", 2, 3, length, 20, 33, gate)
        check_gated(f"gate {gate}, length 530, 16 x 32", 1, 4, 530, 16, 32, gate, chunk=16)
        check_gated(f"gate {gate}, contiguous, no state, scale 1, width 1", 1, 2, 40, 1, 1, gate, layout="plain", with_state=False, scale=1.0)
        check_gated(f"gate {gate}, slice, expanded gradient", 2, 2, 70, 8, 16, gate, layout="slice of a wider tensor", expanded_gradient=True)
        check_gated(f"gate {gate}, one head in segments, length 4400", 1, 1, 4400, 16, 16, gate, rate=0.05, threads=3)
        check_gated(f"gate {gate}, packed", 1, 3, 700, 20, 33, gate, offsets=[0, 17, 17, 400, 432, 700])
        check_gated(f"gate {gate}, packed, no state, three threads", 1, 2, 350, 16, 16, gate, offsets=[0, 1, 201, 350], with_state=False, threads=3)
        check_gated(f"gate {gate}, bfloat16", 1, 2, 100, 16, 32, gate, dtype=torch.bfloat16, tolerance=1e-2)
        check_gated(f"gate {gate}, float16", 1, 2, 100, 16, 32, gate, dtype=torch.float16, tolerance=2e-3)
    for rate in (1.0, 4.0, 20.0, 80.0):
        for gate in ("head", "token", "channel"):
            # Of a head's only gate under such decay the gradient is e^{-20}: the rounding of S dS would be all one sees.
            check_gated(f"gate {gate}, up to -{rate} a token, length 300", 1, 2, 300, 24, 16, gate, rate=rate,
                        state_in_loss=gate != "head" or rate < 20)
    for gate in ("token", "channel"):
        check_gated(f"gate {gate}, -5 at every token, length 512", 1, 2, 512, 24, 16, gate, constant=-5.0)
        check_gated(f"gate {gate}, -inf at tokens 0, 37, 38, 64, 299", 1, 2, 300, 24, 16, gate, closed=(0, 37, 38, 64, 299))
        check_gated(f"gate {gate}, -inf, one head in segments", 1, 1, 4400, 16, 16, gate, closed=(100, 2048, 2049, 4000), threads=3)
    for gate in (None, "head", "token", "channel"):
        check_gated(f"gate {gate}, heads in steps", 1, 3, 2100, 16, 32, gate, rate=0.02, threads=2, tolerance=2e-5)
        check_gated(f"gate {gate}, packed sequences in steps", 1, 2, 3700, 16, 16, gate, rate=0.02, threads=2, offsets=[0, 2500, 2500, 3700],
                    tolerance=2e-5)
    for causal in (False, True):
        for masked in (False, True):
            check_normalised(f"normalised, causal {causal}, mask {masked}, heads in steps", 1, 3, 2100, 16, 32, causal, masked, tolerance=2e-5, threads=2)
            for length in (1, 16, 50, 257, 300):
                check_normalised(f"normalised, causal {causal}, mask {masked}, length {length}", 2, 3, length, 20, 33, causal, masked)
            check_normalised(f"normalised, causal {causal}, mask {masked}, segments", 1, 1, 4400, 16, 32, causal, masked, layout="plain", tolerance=2e-5, threads=3)
    check_step()
    check_refusals()
    finish()


if __name__ == "__main__":
    main()
