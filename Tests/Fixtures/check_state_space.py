"""Checks the state-space kernels against float64 references with autograd.

Usage: check_state_space.py LIBRARY.so        prints the worst relative error of each case, exits 1 above the tolerance.
Relative error: max |a - b| / max |b| over a tensor.
"""

import sys

import torch

TOLERANCE = 1e-5
worst = {}
failures = []


def compare(case, name, ours, reference, tolerance=TOLERANCE):
    if ours.shape != reference.shape:
        failures.append(f"{case} {name}: shape {tuple(ours.shape)}, expected {tuple(reference.shape)}")
        return
    wide = torch.complex128 if reference.is_complex() else torch.float64
    if reference.numel() == 0:
        return
    error = (ours.detach().to(wide) - reference.detach().to(wide)).abs().max().item()
    error /= max(reference.abs().max().item(), 1e-300)
    if not error <= tolerance:
        failures.append(f"{case} {name}: {error:.2e}")
    family = case.split()[0]
    if not error <= worst.get((family, name), (-1.0, ""))[0]:
        worst[(family, name)] = (error, case)


def gradients(function, arguments, upstream):
    leaves = [a for a in arguments if a is not None]
    result = function(*arguments)
    return result, torch.autograd.grad(result, leaves, upstream)


def widened(tensor):
    if tensor is None:
        return None
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64).requires_grad_()


def check(case, ours, reference, names, arguments, upstream, tolerance=TOLERANCE):
    mine = [a if a is None else a.detach().requires_grad_() for a in arguments]
    result, grads = gradients(ours, mine, upstream)
    wide = [widened(a) for a in arguments]
    expected, expected_grads = gradients(reference, wide, widened(upstream).detach())
    compare(case, "forward", result, expected, tolerance)
    present = [n for n, a in zip(names, arguments) if a is not None]
    for name, grad, other in zip(present, grads, expected_grads):
        compare(case, f"d {name}", grad, other, tolerance)
    return result


# References: the definitions, in float64.

def causal(u, k, skip=None):
    length = u.shape[-1]
    size = length + k.shape[-1]
    y = torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(k, size), size)[..., :length]
    return y if skip is None else y + skip[:, None] * u


def bidirectional(u, forward, backward, skip=None):
    return causal(u, forward, skip) + causal(u.flip(-1), backward).flip(-1)


def vandermonde(coefficient, log_transition, length):
    steps = torch.arange(length, dtype=torch.float64)
    return 2 * torch.einsum("...dn,dnl->...dl", coefficient, torch.exp(log_transition[..., None] * steps)).real


def cauchy(numerators, poles, g, h):
    out = 0
    for v, p in ((numerators, poles), (numerators.conj(), poles.conj())):
        out = out + torch.einsum("mdn,dnj->mdj", v, 1 / (g - h * p[..., None]))
    return out


def dplr_nodes(length, count, dtype=torch.complex64):
    omega = torch.exp(-2j * torch.pi * torch.arange(count, dtype=torch.float64) / length)
    return (1 - omega).to(dtype), ((1 + omega) / 2).to(dtype)


def transitions(channels, states, dtype=torch.complex64):
    """Delta Lambda of S4D-Lin with the usual range of step sizes."""
    delta = torch.exp(torch.rand(channels, 1) * 4.6 - 6.9)
    return delta * torch.complex(torch.full((states,), -0.5), torch.pi * torch.arange(states)).to(dtype)


def sequence(batch, channels, length, layout):
    if layout == "transposed":
        return torch.randn(batch, length, channels).transpose(1, 2)
    if layout == "strided":
        return torch.randn(batch, 2 * channels, 3 * length)[:, ::2, ::3]
    return torch.randn(batch, channels, length)


def check_convolutions():
    one = torch.ops.martlet.fft_convolution
    two = torch.ops.martlet.fft_convolution_bidirectional
    cases = [
        (1, 4, 1, 1), (2, 3, 5, 2), (1, 16, 17, 17), (3, 17, 100, 7), (2, 40, 129, 128), (1, 33, 300, 129), (2, 16, 640, 640),
        (1, 5, 1000, 300), (1, 16, 513, 2000), (3, 20, 1024, 1024), (1, 32, 1537, 1537), (2, 19, 2500, 2400), (1, 16, 4096, 4096),
        (5, 4, 700, 130), (1, 16, 9001, 64), (1, 7, 20001, 20001), (1, 16, 65536, 65536), (2, 3, 40, 0),
    ]
    for batch, channels, length, taps in cases:
        for layout in ("contiguous", "transposed", "strided"):
            for with_skip in (False, True):
                u = sequence(batch, channels, length, layout)
                # A decaying kernel, as state-space models have; flat ones need no other treatment.
                decay = torch.exp(-torch.arange(taps) * (4.0 / max(taps, 1)))
                k, kb = torch.randn(channels, taps) * decay, torch.randn(channels, taps) * decay
                skip = torch.randn(channels) if with_skip else None
                upstream = sequence(batch, channels, length, "transposed" if layout == "contiguous" else layout)
                label = f"B={batch} D={channels} L={length} M={taps} {layout} skip={with_skip}"
                y = check("causal " + label, one, causal, ["input", "kernel", "skip"], [u, k, skip], upstream)
                if layout != "strided" and min(u.shape) > 1 and y.stride() != u.stride():
                    failures.append(f"causal {label}: layout {y.stride()}, input has {u.stride()}")
                check("bidirectional " + label, two, bidirectional, ["input", "kernel", "reversed", "skip"],
                      [u, k, kb, skip], upstream)
    # Gradients that are expanded, asked for one at a time, empty sequences, half precision.
    u, k, skip = torch.randn(2, 20, 600), torch.randn(20, 600), torch.randn(20)
    check("causal expanded", one, causal, ["input", "kernel", "skip"], [u, k, skip], torch.ones(1, 1, 1).expand(2, 20, 600))
    for wanted in range(3):
        for taps in (50, 600):
            arguments = [u, k[:, :taps], skip]
            mine = [a.clone().requires_grad_(i == wanted) for i, a in enumerate(arguments)]
            grad, = torch.autograd.grad(one(*mine).square().sum(), mine[wanted])
            wide = [widened(a) for a in arguments]
            expected, = torch.autograd.grad(causal(*wide).square().sum(), wide[wanted])
            compare("causal alone", f"d {['input', 'kernel', 'skip'][wanted]}", grad, expected)
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        assert one(torch.randn(shape), torch.randn(shape[1], 4)).shape == shape
    half = one(u.bfloat16(), k, skip)
    assert half.dtype == torch.bfloat16
    expected = causal(u.bfloat16().double(), k.double(), skip.double())
    if (half.double() - expected).abs().max() > 0.01 * expected.abs().max():
        failures.append("causal bfloat16")
    # An impulse at the last step reaches the last output only: nothing wraps.
    for length in (64, 1000, 1024, 5000):
        impulse = torch.zeros(1, 16, length)
        impulse[..., -1] = 1
        y = one(impulse, torch.ones(16, length))
        leak = y[..., :-1].abs().max().item()
        if leak > TOLERANCE or (y[..., -1] - 1).abs().max() > TOLERANCE:
            failures.append(f"causal impulse at {length}: {leak:.2e} leaks")


def check_vandermonde():
    ours = torch.ops.martlet.vandermonde_kernel
    cases = [(1, 1, 1), (3, 5, 17), (2, 32, 255), (4, 32, 1024), (3, 7, 1000), (5, 4, 4097), (2, 32, 16384), (2, 16, 65536), (1, 3, 65001)]
    for channels, states, length in cases:
        for sets in (None, 2):
            c = torch.randn(*([] if sets is None else [sets]), channels, states, dtype=torch.complex64)
            label = f"vandermonde D={channels} N={states} L={length} sets={sets}"
            # S4D-Lin, and slow decay with large phases, where single-precision exponents would lose everything.
            slow = torch.complex(-torch.rand(channels, states) * 4 / length, torch.randn(channels, states) * 3)
            for name, a in (("lin", transitions(channels, states)), ("slow", slow)):
                upstream = torch.randn(*c.shape[:-1], length)
                check(f"{label} {name}", lambda c, a: ours(c, a, length), lambda c, a: vandermonde(c, a, length),
                      ["coefficient", "transition"], [c, a], upstream)
    # Lazily conjugated and transposed arguments.
    c, a = torch.randn(4, 3, dtype=torch.complex64), transitions(3, 4)
    check("vandermonde views", lambda c, a: ours(c.T.conj(), a, 100), lambda c, a: vandermonde(c.T.conj(), a, 100),
          ["coefficient", "transition"], [c, a], torch.ones(1, 1).expand(3, 100))
    for shape in ((0, 3), (3, 0)):
        empty = torch.zeros(shape, dtype=torch.complex64)
        compare("vandermonde empty", "forward", ours(empty, empty, 5), torch.zeros(shape[0], 5))
    assert ours(c.T, a, 0).shape == (3, 0)


def check_cauchy():
    ours = torch.ops.martlet.cauchy_kernel
    for count, channels, states, length in [(4, 3, 32, 1024), (4, 2, 5, 33), (1, 2, 3, 1), (6, 2, 32, 5000), (4, 2, 32, 16384), (3, 1, 8, 2048)]:
        for family, dtype, tolerance in (("cauchy", torch.complex64, TOLERANCE), ("cauchy128", torch.complex128, 1e-12)):
            g, h = dplr_nodes(length, length // 2 + 1, dtype)
            v, p = torch.randn(count, channels, states, dtype=dtype), transitions(channels, states, dtype)
            wide_g, wide_h = g.to(torch.complex128), h.to(torch.complex128)
            upstream = torch.randn(count, channels, len(g), dtype=dtype)
            result = check(f"{family} M={count} D={channels} N={states} L={length}", lambda v, p: ours(v, p, g, h),
                           lambda v, p: cauchy(v, p, wide_g, wide_h), ["numerators", "poles"], [v, p], upstream, tolerance)
            if result.dtype != dtype:
                failures.append(f"{family}: result is {result.dtype}")
    # Lazily conjugated and transposed arguments, an expanded gradient, nothing to sum.
    g, h = dplr_nodes(100, 51, torch.complex128)
    v, p = torch.randn(4, 3, 2, dtype=torch.complex128), transitions(3, 4, torch.complex128)
    check("cauchy128 views", lambda v, p: ours(v.transpose(0, 2).conj(), p, g, h), lambda v, p: cauchy(v.transpose(0, 2).conj(), p, g, h),
          ["numerators", "poles"], [v, p], torch.ones(1, 1, 1, dtype=torch.complex128).expand(2, 3, 51), 1e-12)
    for shape in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        empty = torch.zeros(shape, dtype=torch.complex128)
        compare("cauchy128 empty", "forward", ours(empty, torch.zeros(shape[1:], dtype=torch.complex128), g, h),
                torch.zeros(shape[0], shape[1], 51, dtype=torch.complex128))


def check_dplr_step_gradient():
    """The gradient of the step size through v = delta c b, p = delta lambda, whose two parts nearly cancel: in complex128
    the float32 parameter's gradient is right to its last bits."""
    ours = torch.ops.martlet.cauchy_kernel
    for channels, states, length in [(3, 32, 4096), (2, 8, 101)]:
        g, h = dplr_nodes(length, length // 2 + 1, torch.complex128)
        rows = torch.randn(4, channels, states, dtype=torch.complex64)
        poles = torch.complex(torch.full((states,), -0.5), torch.pi * torch.arange(states)).expand(channels, states).contiguous()
        log_step = torch.rand(channels, 1) * 4.6 - 6.9
        upstream = torch.randn(4, channels, length)

        def kernel(function):
            def of(log_step, rows, poles):
                step = log_step.double().exp()
                r = function(rows.to(torch.complex128) * step, poles.to(torch.complex128) * step, g, h)
                return torch.fft.irfft(r, length).to(log_step.dtype)
            return of

        check(f"dplr128 D={channels} N={states} L={length}", kernel(ours), kernel(cauchy), ["log_step", "rows", "poles"],
              [log_step, rows, poles], upstream, 1e-6)


def check_step():
    for batch, channels, states in [(1, 1, 1), (2, 3, 5), (4, 64, 32)]:
        a = transitions(channels, states)
        c, b = (torch.randn(channels, states, dtype=torch.complex64) for _ in range(2))
        skip, length = torch.randn(channels), 40
        u = torch.randn(batch, channels, length)
        state = torch.zeros(batch, channels, states, dtype=torch.complex64)
        y = torch.stack([torch.ops.martlet.diagonal_ssm_step(u[..., t], c, b, a.exp(), skip, state) for t in range(length)], -1)
        kernel = vandermonde(widened(c) * widened(b), widened(a), length)
        compare(f"step B={batch} D={channels} N={states}", "sequence", y, causal(u.double(), kernel, skip.double()))


def pack_terms(vectors):
    """Five complex [D, N] vectors as [D / 16, N, 5, 2, 16], zeros for the channels that are missing."""
    v = torch.stack([torch.view_as_real(x.to(torch.complex64)) for x in vectors])  # [5, D, N, 2]
    v = torch.nn.functional.pad(v, (0, 0, 0, 0, 0, -v.shape[1] % 16))
    return v.view(5, -1, 16, *v.shape[2:]).permute(1, 3, 0, 4, 2).contiguous()


def check_low_rank_scan():
    """Against the dense bilinear recurrence of A = Lambda - P P*, over the conjugate-closed set."""
    for batch, channels, states, length in [(1, 1, 1, 1), (2, 3, 5, 7), (1, 8, 32, 40), (3, 21, 32, 33), (2, 64, 4, 100)]:
        half = torch.complex(torch.full((channels, states), -0.5), torch.pi * (torch.arange(states) + 0.5).expand(channels, states)).to(torch.complex128)
        p, b, c = (torch.randn(channels, states, dtype=torch.complex128) for _ in range(3))
        delta = torch.exp(torch.rand(channels, 1, dtype=torch.float64) * 4.6 - 6.9)
        f = 1 / (2 / delta - half)
        gain = 1 / (1 + 2 * (p.conj() * f * p).sum(-1, keepdim=True).real)
        terms = [f * (2 / delta + half), f * p, 2 * f * b, p, c]
        u, skip = torch.randn(batch, length, channels), torch.randn(channels)
        state = torch.randn(batch, channels, states, dtype=torch.complex64)

        def closed(x):
            return torch.cat([x, x.conj()], -1)

        a = torch.diag_embed(closed(half)) - closed(p)[..., :, None] * closed(p).conj()[..., None, :]
        eye = torch.eye(2 * states, dtype=torch.complex128)
        left = torch.linalg.inv(eye - delta[..., None] / 2 * a)
        bar_a, bar_b = left @ (eye + delta[..., None] / 2 * a), (left @ (closed(b) * delta)[..., None])[..., 0]
        x, rows = closed(state.to(torch.complex128)), []
        for t in range(length):
            x = torch.einsum("dnm,bdm->bdn", bar_a, x) + bar_b * u[:, t, :, None]
            rows.append((closed(c) * x).sum(-1).real + skip * u[:, t])
        label = f"scan B={batch} D={channels} N={states} L={length}"
        cut = length // 2  # in two calls, the state carried over
        packed = pack_terms(terms)
        y = torch.cat([torch.ops.martlet.dplr_ssm_scan(part, packed, gain.float(), skip, state) for part in (u[:, :cut], u[:, cut:])], 1)
        compare(label, "sequence", y, torch.stack(rows, 1))
        compare(label, "state", state, x[..., :states])


def check_refusals():
    """Wrong arguments and second derivatives end in an error that names the operator, never in a wrong result."""
    ops = torch.ops.martlet
    u, k = torch.randn(2, 3, 50), torch.randn(3, 50)
    c, a = torch.randn(3, 4, dtype=torch.complex64), transitions(3, 4)
    g, h = dplr_nodes(8, 5)
    state = torch.zeros(2, 3, 4, dtype=torch.complex64)

    def second(function, *arguments):
        leaves = [x.clone().requires_grad_() for x in arguments]
        first, = torch.autograd.grad(function(*leaves).abs().square().sum(), leaves[0], create_graph=True)
        return first

    wrong = {
        "kernel of other channels": lambda: ops.fft_convolution(u, k[:2]),
        "input of two dimensions": lambda: ops.fft_convolution(u[0], k),
        "float64": lambda: ops.fft_convolution(u.double(), k.double()),
        "skip of other channels": lambda: ops.fft_convolution(u, k, torch.ones(4)),
        "kernels of two lengths": lambda: ops.fft_convolution_bidirectional(u, k, k[:, :3]),
        "real coefficient": lambda: ops.vandermonde_kernel(c.real, a, 5),
        "coefficient of other states": lambda: ops.vandermonde_kernel(c[:, :2], a, 5),
        "negative length": lambda: ops.vandermonde_kernel(c, a, -1),
        "numerators of two dimensions": lambda: ops.cauchy_kernel(c, a, g, h),
        "nodes of two lengths": lambda: ops.cauchy_kernel(c[None], a, g, h[:2]),
        "poles of another precision": lambda: ops.cauchy_kernel(c[None], a.to(torch.complex128), g, h),
        "nodes of another precision": lambda: ops.cauchy_kernel(c[None].to(torch.complex128), a.to(torch.complex128), g, h),
        "gradient of another precision": lambda: ops.cauchy_kernel_backward(
            torch.zeros(1, 3, 5, dtype=torch.complex128), c[None], a, g, h),
        "gradient for nodes": lambda: ops.cauchy_kernel(c[None], a, g.clone().requires_grad_(), h),
        "state of other batch": lambda: ops.diagonal_ssm_step(u[:, :, 0], c, c, a, None, state[:1]),
        "state with strides": lambda: ops.diagonal_ssm_step(u[:, :, 0], c, c, a, None, torch.zeros(2, 3, 8, dtype=c.dtype)[..., ::2]),
        "scan without time": lambda: ops.dplr_ssm_scan(u[:, :, 0], pack_terms([c] * 5), torch.ones(3), torch.ones(3), state),
        "scan with unpacked terms": lambda: ops.dplr_ssm_scan(
            u.transpose(1, 2), torch.view_as_real(c), torch.ones(3), torch.ones(3), state),
        "scan with a state of other batch": lambda: ops.dplr_ssm_scan(
            u.transpose(1, 2), pack_terms([c] * 5), torch.ones(3), torch.ones(3), state[:1]),
        "second derivative of the convolution": lambda: second(ops.fft_convolution, u, k),
        "second derivative of the Vandermonde kernel": lambda: second(lambda c, a: ops.vandermonde_kernel(c, a, 9), c, a),
        "second derivative of the Cauchy kernel": lambda: second(lambda c, a: ops.cauchy_kernel(c, a, g, h), c[None], a),
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
    checks = {name: function for name, function in globals().items() if name.startswith("check_")}
    for name in sys.argv[2:] or checks:
        checks[name]()
    for (family, name), (error, case) in sorted(worst.items()):
        print(f"{family:16} {name:18} {error:.2e}   ({case})")
    for failure in failures:
        print("FAILED", failure)
    sys.exit(1 if failures else 0)


main()
