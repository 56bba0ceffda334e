"""Checks the fused delta rule kernels against a float64 recurrence differentiated by autograd.

    python Tests/Fixtures/check_delta_rule.py libMartletKernels.so

Prints the worst relative error (max |a - b| / max |b|) of every output and gradient; exits 1 above the tolerance.
"""

import sys

import torch

from check_gated_linear_attention import tensor
from kernel_errors import error, finish, report


def recurrence(q, k, v, beta, g, state, scale, eps):
    """S_t = e^{g_t} S_{t-1} + k_t' Δ_t, Δ_t = β_t (v_t - e^{g_t} k_t S_{t-1}), o_t = scale q_t S_t, token by token."""
    batch, heads, length, width = q.shape
    if eps is not None:
        q, k = (x * (x.square().sum(-1, keepdim=True) + eps).rsqrt() for x in (q, k))
    state = torch.zeros(batch, heads, width, v.shape[-1], dtype=q.dtype) if state is None else state
    outputs = []
    for t in range(length):
        if g is not None:
            state = g[:, :, t, None, None].exp() * state
        key = k[:, :, t].unsqueeze(-1)
        change = beta[:, :, t, None] * (v[:, :, t] - (key * state).sum(-2))
        state = state + key * change.unsqueeze(-2)
        outputs.append(scale * (q[:, :, t].unsqueeze(-1) * state).sum(-2))
    return (torch.stack(outputs, 2) if outputs else v.new_zeros(v.shape)), state


def packed_recurrence(q, k, v, beta, g, state, scale, eps, offsets):
    outputs, states = [], []
    for i, (a, b) in enumerate(zip(offsets, offsets[1:])):
        part = lambda x: None if x is None else x[:, :, a:b]
        o, s = recurrence(part(q), part(k), part(v), part(beta), part(g), None if state is None else state[i : i + 1], scale, eps)
        outputs.append(o)
        states.append(s)
    return torch.cat(outputs, 2), torch.cat(states)


def check(name, batch, heads, length, dk, dv, gated=False, rate=0.1, top=1.0, unit=None, layout="heads inside", with_state=True,
          dtype=torch.float32, closed=(), tolerance=1e-5, scale=None, threads=1, offsets=None, state_in_loss=True):
    generator = torch.Generator().manual_seed(1000 * length + dk)
    q, k = (tensor((batch, heads, length, dk), layout, generator, dtype=dtype) for _ in range(2))
    if unit is None:
        with torch.no_grad():
            k /= k.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    v = tensor((batch, heads, length, dv), layout, generator, dtype=dtype)
    beta = (top * torch.rand(batch, length, heads, generator=generator)).transpose(1, 2).requires_grad_()
    g = None
    if gated:
        g = (-rate * torch.rand(batch, length, heads, generator=generator)).transpose(1, 2).clone()
        for t in closed:
            g[:, :, t] = -float("inf")
        g.requires_grad_()
    count = batch if offsets is None else len(offsets) - 1
    s = torch.randn(count, heads, dk, dv, generator=generator).requires_grad_() if with_state else None
    inputs = {"q": q, "k": k, "v": v, "b": beta, "g": g, "s": s}
    doubles = {n: None if x is None else x.detach().double().requires_grad_() for n, x in inputs.items()}
    factor = dk**-0.5 if scale is None else scale
    if offsets is None:
        ro, rlast = recurrence(*doubles.values(), factor, unit)
    else:
        ro, rlast = packed_recurrence(*doubles.values(), factor, unit, offsets)
    torch.set_num_threads(threads)
    packing = None if offsets is None else torch.tensor(offsets)
    o, last = torch.ops.martlet.delta_rule(q, k, v, beta, g, s, scale, 64, unit, packing)
    do = torch.randn(o.shape, generator=generator)
    dlast = torch.randn(last.shape, generator=generator)
    assert o.transpose(1, 2).is_contiguous() and last.dtype == torch.float32
    errors = {"o": error(o.detach(), ro.detach()), "S": error(last.detach(), rlast.detach())}
    with torch.no_grad():
        plain, plain_last = torch.ops.martlet.delta_rule(q, k, v, beta, g, s, scale, 64, unit, packing)
    assert torch.equal(plain, o) and torch.equal(plain_last, last)
    ((o.double() * do).sum() + (last * dlast).sum() * state_in_loss).backward()
    torch.set_num_threads(1)
    ((ro * do.double()).sum() + (rlast * dlast.double()).sum() * state_in_loss).backward()
    for n, x in inputs.items():
        if x is not None:
            wanted = doubles[n].grad  # None where the loop ran no step
            if n == "g" and closed:  # by convention a closed gate has no gradient; e^g there is 0, so neither has the loop's
                wanted = torch.nan_to_num(wanted)
            errors["d" + n] = error(x.grad, torch.zeros_like(doubles[n]) if wanted is None else wanted)
    report(name, errors, tolerance)


def check_step():
    generator = torch.Generator().manual_seed(3)
    batch, heads, dk, dv = 2, 3, 20, 33
    for gated in (False, True):
        for unit in (None, 1e-6):
            state = torch.randn(batch, heads, dk, dv, generator=generator)
            wanted = state.double()
            errors = {"o": 0.0}
            for _ in range(5):
                q, k = (torch.randn(batch, heads, dk, generator=generator) for _ in range(2))
                k = k if unit else k / k.norm(dim=-1, keepdim=True)
                v = torch.randn(batch, heads, dv, generator=generator)
                beta = torch.rand(batch, heads, generator=generator)
                g = -torch.rand(batch, heads, generator=generator) if gated else None
                o = torch.ops.martlet.delta_rule_step(q, k, v, beta, g, state, None, unit)
                token = [None if x is None else x.unsqueeze(2).double() for x in (q, k, v, beta, g)]
                r, wanted = recurrence(*token, wanted, dk**-0.5, unit)
                errors["o"] = max(errors["o"], error(o, r.squeeze(2)))
            errors["S"] = error(state, wanted)
            report(f"step, gated {gated}, unit {unit}", errors)


def check_refusals():
    x, beta = torch.randn(1, 2, 5, 4), torch.rand(1, 2, 5)
    f = torch.ops.martlet.delta_rule
    for name, call in {
        "key of another shape": lambda: f(x, x[..., :3], x, beta),
        "rate of another shape": lambda: f(x, x, x, beta[..., :3]),
        "decay of another shape": lambda: f(x, x, x, beta, x),
        "state of another shape": lambda: f(x, x, x, beta, None, x),
        "float64": lambda: f(x.double(), x.double(), x.double(), beta),
        "chunk 0": lambda: f(x, x, x, beta, chunk=0),
        "offsets that end early": lambda: f(x, x, x, beta, offsets=torch.tensor([0, 4])),
        "offsets that decrease": lambda: f(x, x, x, beta, offsets=torch.tensor([0, 4, 3, 5])),
        "packed batches": lambda: f(*(t.expand(2, *t.shape[1:]) for t in (x, x, x, beta)), offsets=torch.tensor([0, 5])),
    }.items():
        try:
            call()
            report(f"refuses {name}", {"accepted": 1.0})
        except (RuntimeError, ValueError):
            report(f"refuses {name}", {"accepted": 0.0})
    y = x.clone().requires_grad_()
    try:
        torch.autograd.grad(f(y, x, x, beta)[0].sum(), y, create_graph=True)
        report("refuses second derivatives", {"accepted": 1.0})
    except RuntimeError:
        report("refuses second derivatives", {"accepted": 0.0})


def main():
    torch.ops.load_library(sys.argv[1])
    torch.set_num_threads(1)  # of the references
    for gated in (False, True):
        for length in (0, 1, 15, 16, 17, 63, 64, 65, 128, 129, 300):
            check(f"gated {gated}, length {length}, 2x3 heads, 20 x 33", 2, 3, length, 20, 33, gated)
        check(f"gated {gated}, length 530, 16 x 32, three threads", 1, 4, 530, 16, 32, gated, threads=3)
        check(f"gated {gated}, length 200, 64 x 64, unit", 1, 2, 200, 64, 64, gated, unit=1e-6)
        check(f"gated {gated}, length 200, 20 x 33, unit, scale 2", 1, 2, 200, 20, 33, gated, unit=1e-6, scale=2.0)
        check(f"gated {gated}, length 100, 128 x 128, unit", 1, 1, 100, 128, 128, gated, unit=1e-6)
        check(f"gated {gated}, rates up to 2", 1, 2, 300, 24, 16, gated, top=2.0, unit=1e-6, tolerance=2e-5)
        check(f"gated {gated}, contiguous, no state, scale 1, width 1", 1, 2, 40, 1, 1, gated, layout="plain", with_state=False, scale=1.0)
        check(f"gated {gated}, slice", 2, 2, 70, 8, 16, gated, layout="slice of a wider tensor")
        check(f"gated {gated}, packed", 1, 3, 350, 20, 33, gated, offsets=[0, 17, 17, 150, 182, 350])
        check(f"gated {gated}, packed, unit, no state, three threads", 1, 2, 350, 16, 16, gated, offsets=[0, 200, 201, 350], unit=1e-6, with_state=False, threads=3)
        check(f"gated {gated}, bfloat16", 1, 2, 100, 16, 32, gated, dtype=torch.bfloat16, unit=1e-6, tolerance=2e-2)
        check(f"gated {gated}, float16", 1, 2, 100, 16, 32, gated, dtype=torch.float16, unit=1e-6, tolerance=3e-3)
    for rate in (1.0, 4.0, 20.0, 80.0):
        check(f"up to -{rate} a token, length 300", 1, 2, 300, 24, 16, True, rate=rate)
    check("-inf at tokens 0, 37, 38, 64, 299", 1, 2, 300, 24, 16, True, closed=(0, 37, 38, 64, 299))
    check_step()
    check_refusals()
    finish()


if __name__ == "__main__":
    main()
