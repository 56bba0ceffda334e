"""Checks the dense kernels against float64 autograd: every output and gradient over odd sizes and tails.

Usage: check_dense.py LIBRARY.so      prints the worst relative errors (max |a-b| / max |b|); status 1 over tolerance.
"""

import sys

import torch
import torch.nn.functional as F

TOLERANCE = 1e-5
worst: dict[str, float] = {}


def relative(ours, expected):
    if ours.numel() == 0:
        return 0.0 if ours.shape == expected.shape else float("inf")
    scale = expected.abs().max().item()
    return ((ours.double() - expected).abs().max() / (scale if scale > 0 else 1)).item()


def record(name, ours, expected):
    if ours.shape != expected.shape:
        sys.exit(f"{name}: shape {tuple(ours.shape)}, expected {tuple(expected.shape)}")
    error = relative(ours, expected)
    worst[name] = max(worst.get(name, 0.0), error if error == error else float("inf"))


def compare(name, ours, reference, tensors, strided_gradient=False):
    """`tensors`: name -> f32 tensor or None. Runs both forms forward and backward, in f32 and in float64."""
    low = {k: None if v is None else v.clone().requires_grad_() for k, v in tensors.items()}
    high = {k: None if v is None else v.double().requires_grad_() for k, v in tensors.items()}
    y, expected = ours(**low), reference(**high)
    record(f"{name} y", y.detach(), expected.detach())
    with torch.no_grad():
        record(f"{name} y without gradients", ours(**low), expected.detach())
    seed = torch.randn(y.shape)
    if strided_gradient:
        seed = seed.new_ones(()).expand(y.shape) if strided_gradient == "expanded" else torch.randn(*y.shape, 2)[..., 0]
    given = [k for k, v in low.items() if v is not None]
    grads = torch.autograd.grad(y, [low[k] for k in given], seed)
    expected_grads = torch.autograd.grad(expected, [high[k] for k in given], seed.double())
    for k, g, e in zip(given, grads, expected_grads):
        record(f"{name} d{k}", g, e)
    # One gradient at a time: whatever is not asked for may be skipped, and must not disturb the rest.
    for k, e in zip(given, expected_grads):
        alone = {j: v if v is None else v.detach().requires_grad_(j == k) for j, v in low.items()}
        (g,) = torch.autograd.grad(ours(**alone), alone[k], seed)
        record(f"{name} d{k} alone", g, e)


def check_second_order(name, ours, tensors):
    """float64 falls back to ATen, differentiable twice; f32 with create_graph agrees with it."""
    high = {k: None if v is None else v.double().requires_grad_() for k, v in tensors.items()}
    low = {k: None if v is None else v.clone().requires_grad_() for k, v in tensors.items()}
    names = [k for k, v in high.items() if v is not None]

    def positional(*values):
        named = dict(zip(names, values))
        return ours(**{k: named.get(k) for k in tensors})

    if not torch.autograd.gradcheck(positional, [high[k] for k in names]):
        sys.exit(f"{name}: gradcheck failed")
    if not torch.autograd.gradgradcheck(positional, [high[k] for k in names]):
        sys.exit(f"{name}: gradgradcheck failed")

    def penalty(values):
        inputs = [values[k] for k in names]
        grads = torch.autograd.grad(ours(**values).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)

    for k, g, e in zip(names, penalty(low), penalty(high)):
        record(f"{name} second order d{k}", g, e)


def check_linear():
    linear = torch.ops.martlet.linear
    sizes = [(4096, 256, 768), (300, 1024, 256), (777, 200, 333), (256, 64, 192), (33, 7, 5), (1, 1000, 130), (5, 64, 48)]
    sizes += [(70, 31, 517), (64, 517, 40), (9, 17, 65), (16, 16, 16), (129, 257, 63), (1, 1, 1), (0, 8, 4), (2000, 3, 4)]
    # With thousands of tokens never a single output: one sum can come out near zero, where no f32 form has five digits.
    for tokens, inner, outer in sizes:
        for bias in (True, False):
            tensors = {
                "x": torch.randn(tokens, inner),
                "weight": torch.randn(outer, inner),
                "bias": torch.randn(outer) if bias else None,
            }
            compare("linear", linear, F.linear, tensors)
    tensors = {"x": torch.randn(3, 4, 50, 24).transpose(1, 2), "weight": torch.randn(24, 36).t(), "bias": torch.randn(36)}
    for gradient in (True, "expanded"):
        compare("linear strided", linear, F.linear, tensors, gradient)
    compare("linear vector", linear, F.linear, {"x": torch.randn(24), "weight": torch.randn(36, 24), "bias": None})
    check_second_order("linear", linear, {"x": torch.randn(3, 5), "weight": torch.randn(4, 5), "bias": torch.randn(4)})
    expect_error("x", lambda: linear(torch.randn(3, 4), torch.randn(5, 6)))
    expect_error("bias", lambda: linear(torch.randn(3, 6), torch.randn(5, 6), torch.randn(6)))


def expect_error(part, call):
    try:
        call()
    except RuntimeError as error:
        if part in str(error):
            return
        sys.exit(f"expected an error naming {part!r}, got: {error}")
    sys.exit(f"expected an error naming {part!r}, got none")


ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "silu": F.silu}


def check_feed_forward():
    sizes = [(300, 64, 256, 64), (129, 33, 65, 17), (1, 48, 100, 48), (8, 16, 2100, 24), (40, 24, 2100, 16), (0, 4, 5, 6)]
    sizes += [(1030, 70, 96, 80)]
    for activation, act in ACTIVATIONS.items():

        def plain(x, w1, b1, w2, b2):
            return F.linear(act(F.linear(x, w1, b1)), w2, b2)

        def gated(x, w_gate, w_up, w_down):
            return F.linear(act(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)

        def mlp(x, w1, b1, w2, b2):
            return torch.ops.martlet.mlp(x, w1, b1, w2, b2, activation)

        def gated_mlp(x, w_gate, w_up, w_down):
            return torch.ops.martlet.gated_mlp(x, w_gate, w_up, w_down, activation)

        for tokens, inner, hidden, outer in sizes:
            x = torch.randn(tokens, inner)
            w1, w_up, w2 = torch.randn(hidden, inner) / inner**0.5, torch.randn(hidden, inner), torch.randn(outer, hidden)
            for given in range(4):
                b1, b2 = torch.randn(hidden) if given & 1 else None, torch.randn(outer) if given & 2 else None
                compare(f"mlp {activation}", mlp, plain, {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2})
            compare(f"gated_mlp {activation}", gated_mlp, gated, {"x": x, "w_gate": w1, "w_up": w_up, "w_down": w2})
        x, w1, w2 = torch.randn(2, 3, 20).transpose(0, 1), torch.randn(20, 30).t(), torch.randn(30, 20).t()
        for gradient in (True, "expanded"):
            tensors = {"x": x, "w1": w1, "b1": torch.randn(30), "w2": w2, "b2": torch.randn(20)}
            compare(f"mlp {activation} strided", mlp, plain, tensors, gradient)
            tensors = {"x": x, "w_gate": w1, "w_up": w1 + 1, "w_down": w2}
            compare(f"gated_mlp {activation} strided", gated_mlp, gated, tensors, gradient)
        if activation == "relu":  # The slope jumps: finite differences say nothing.
            continue
        small = {"x": torch.randn(3, 4), "w1": torch.randn(5, 4), "b1": torch.randn(5), "w2": torch.randn(4, 5), "b2": torch.randn(4)}
        check_second_order(f"mlp {activation}", mlp, small)
        small = {"x": torch.randn(3, 4), "w_gate": torch.randn(5, 4), "w_up": torch.randn(5, 4), "w_down": torch.randn(4, 5)}
        check_second_order(f"gated_mlp {activation}", gated_mlp, small)
        # The whole range of the activation, where its parts (exponential, tail) change regime.
        x = torch.linspace(-20, 20, 4001).unsqueeze(1)
        one = torch.ones(1, 1)
        through = lambda x: mlp(x, one, None, one, None)  # noqa: E731
        compare(f"mlp {activation} range", through, lambda x: act(x), {"x": x})
    x, w1 = torch.randn(2, 3), torch.randn(4, 3)
    expect_error("swish", lambda: torch.ops.martlet.mlp(x, w1, None, torch.randn(3, 4), None, "swish"))
    expect_error("w2", lambda: torch.ops.martlet.mlp(x, w1, None, torch.randn(3, 5), None, "relu"))


def check_normalization():
    def layer_norm(x, weight, bias):
        return torch.ops.martlet.layer_norm(x, weight, bias, 1e-5)

    def layer_norm_reference(x, weight, bias):
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def rms_norm(x, weight):
        return torch.ops.martlet.rms_norm(x, weight, 1e-6)

    def rms_norm_reference(x, weight):
        return F.rms_norm(x, x.shape[-1:], weight, 1e-6)

    # Not width 2: there dx vanishes up to eps, and any f32 form (PyTorch's too) has few correct digits.
    for shape in [(4096, 256), (5, 7, 33), (1, 1000), (3, 3), (16,), (0, 8), (300, 1025)]:
        width = shape[-1]
        for shift in (0, 5):
            x = torch.randn(shape) * 3 + shift
            for weight, bias in ((True, True), (True, False), (False, True), (False, False)):
                weight = torch.randn(width) if weight else None
                bias = torch.randn(width) if bias else None
                compare("layer_norm", layer_norm, layer_norm_reference, {"x": x, "weight": weight, "bias": bias})
                compare("rms_norm", rms_norm, rms_norm_reference, {"x": x, "weight": weight})
    x, weight, bias = torch.randn(12, 3, 40).transpose(0, 1), torch.randn(80)[::2], torch.randn(40)
    compare("layer_norm strided", layer_norm, layer_norm_reference, {"x": x, "weight": weight, "bias": bias}, "expanded")
    compare("rms_norm strided", rms_norm, rms_norm_reference, {"x": x, "weight": weight}, True)
    check_second_order("layer_norm", layer_norm, {"x": torch.randn(3, 5), "weight": torch.randn(5), "bias": torch.randn(5)})
    check_second_order("layer_norm bias only", layer_norm, {"x": torch.randn(3, 5), "weight": None, "bias": torch.randn(5)})
    check_second_order("rms_norm", rms_norm, {"x": torch.randn(3, 5), "weight": torch.randn(5)})
    expect_error("weight", lambda: layer_norm(torch.randn(3, 4), torch.randn(5), None))


def check_cross_entropy():
    for rows, classes in [(4096, 256), (33, 7), (1, 1), (5, 50_257), (300, 1001), (2, 16)]:
        logits = torch.randn(rows, classes) * 4
        for ignored in (-100, classes - 1 if classes > 1 else -1):
            target = torch.randint(0, classes, (rows,))
            target[0] = 0
            target[rows // 2 + 1 :: 3] = ignored
            for smoothing in (0.0, 0.1, 1.0):

                def ours(logits):
                    return torch.ops.martlet.cross_entropy(logits, target, ignored, smoothing)

                def reference(logits):
                    return F.cross_entropy(logits, target, ignore_index=ignored, label_smoothing=smoothing)

                compare("cross_entropy", ours, reference, {"logits": logits})
    target = torch.tensor([1, 2, -100])
    compare(
        "cross_entropy strided",
        lambda logits: torch.ops.martlet.cross_entropy(logits, target),
        lambda logits: F.cross_entropy(logits, target),
        {"logits": torch.randn(6, 3).t()},
    )
    smoothed = lambda logits: torch.ops.martlet.cross_entropy(logits, target, -100, 0.2)  # noqa: E731
    check_second_order("cross_entropy", smoothed, {"logits": torch.randn(3, 6)})
    masked = torch.randn(3, 40)
    masked[:, ::2] = -float("inf")
    compare(
        "cross_entropy masked",
        lambda logits: torch.ops.martlet.cross_entropy(logits, target),
        lambda logits: F.cross_entropy(logits, target),
        {"logits": torch.where(torch.arange(40) < 3, torch.randn(3, 40), masked)},
    )
    for dtype in (torch.float32, torch.float64):
        logits = torch.randn(3, 5, dtype=dtype, requires_grad=True)
        nothing = torch.ops.martlet.cross_entropy(logits, torch.full((3,), -100))
        (gradient,) = torch.autograd.grad(nothing, logits)
        if nothing.item() != 0 or gradient.abs().max() != 0:
            sys.exit(f"cross_entropy of no kept position: {nothing.item()}, gradient {gradient}; expected zeros")
    expect_error("is 6, outside 0..<6", lambda: torch.ops.martlet.cross_entropy(torch.randn(3, 6), torch.tensor([1, 6, 2])))
    expect_error("is -1, outside 0..<6", lambda: torch.ops.martlet.cross_entropy(torch.randn(3, 6), torch.tensor([1, -1, 2])))
    expect_error("int64", lambda: torch.ops.martlet.cross_entropy(torch.randn(3, 6), torch.tensor([1, 1, 2], dtype=torch.int32)))


def check_adamw():
    shapes = [(256, 256), (3,), (1,), (70_001,), (0,), (16, 17)]
    parameters = [torch.randn(s).requires_grad_() for s in shapes]
    ours = [p.detach().clone() for p in parameters]
    mean, square = [torch.zeros(s) for s in shapes], [torch.zeros(s) for s in shapes]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(1, 31):
        for p in parameters:
            p.grad = torch.randn(p.shape) * 10 ** torch.empty(()).uniform_(-4, 1)
        optimizer.step()
        scaled = [p.grad * 8 for p in parameters]
        torch.ops.martlet.adamw_step(ours, scaled, mean, square, 1e-2, 0.9, 0.95, 1e-8, 0.1, step, 0.125)
    for a, b, m, v in zip(ours, parameters, mean, square):
        state = optimizer.state[b]
        record("adamw parameters (tolerance 1e-6)", a, b.detach().double())
        record("adamw exp_avg", m, state["exp_avg"].double())
        record("adamw exp_avg_sq", v, state["exp_avg_sq"].double())
    if worst["adamw parameters (tolerance 1e-6)"] > 1e-6:
        worst["adamw parameters (tolerance 1e-6)"] = float("inf")
    grads = [torch.randn(s) for s in shapes] + [torch.randn(40, 30).t()]
    expected = torch.linalg.vector_norm(torch.cat([g.double().flatten() for g in grads]))
    record("grad_norm", torch.ops.martlet.grad_norm(grads), expected)
    record("grad_norm of nothing", torch.ops.martlet.grad_norm([]), torch.zeros((), dtype=torch.float64))
    versions = ours[0]._version
    torch.ops.martlet.adamw_step(ours, ours, mean, square, 1e-2, 0.9, 0.95, 1e-8, 0.1, 31)
    if ours[0]._version == versions:
        sys.exit("adamw_step: the version of an updated parameter did not change")
    expect_error("exp_avg[0]", lambda: torch.ops.martlet.adamw_step(ours, ours, mean[::-1], square, 1, 0, 0, 0, 0, 1))


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.ops.load_library(sys.argv[1])
    torch.manual_seed(0)
    check_linear()
    check_feed_forward()
    check_normalization()
    check_cross_entropy()
    check_adamw()
    for name, error in worst.items():
        print(f"{name:45} {error:.1e}{'' if error <= TOLERANCE else '   OVER TOLERANCE'}")
    sys.exit(any(not error <= TOLERANCE for error in worst.values()))


if __name__ == "__main__":
    main()
