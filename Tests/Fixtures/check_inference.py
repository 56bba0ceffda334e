"""Checks the inference kernels against float64 PyTorch: thin products, quantised weights, feed-forwards, attention and caches.

Usage: check_inference.py LIBRARY.so      prints the worst relative errors (max |a-b| / max |b|); status 1 over tolerance.
"""

import sys

import torch
import torch.nn.functional as F

TOLERANCE = 1e-5
worst: dict[str, float] = {}
generator = torch.Generator().manual_seed(3)


def randn(*shape):
    return torch.randn(*shape, generator=generator)


def record(name, ours, expected):
    if ours.shape != expected.shape:
        sys.exit(f"{name}: shape {tuple(ours.shape)}, expected {tuple(expected.shape)}")
    if ours.numel() == 0:
        return
    scale = expected.abs().max().item()
    error = ((ours.double() - expected.double()).abs().max() / (scale if scale > 0 else 1)).item()
    worst[name] = max(worst.get(name, 0.0), error if error == error else float("inf"))


def expect_error(part, call):
    try:
        call()
    except RuntimeError as error:
        if part in str(error):
            return
        sys.exit(f"expected an error naming {part!r}, got: {error}")
    sys.exit(f"expected an error naming {part!r}, got none")


def record_bound(name, holds):
    if not holds:
        sys.exit(f"{name}: bound exceeded")


SIZES = [(1, 768, 96), (3, 33, 70), (8, 129, 65), (9, 100, 130), (7, 1, 3), (1, 16, 16), (65, 200, 77), (600, 48, 40), (2, 300, 1), (5, 7, 0)]


def check_mixed_linear():
    ops = torch.ops.martlet
    for tokens, inner, outer in SIZES + [(0, 8, 4)]:
        weight, bias = randn(outer, inner).bfloat16(), randn(outer)
        for b in (None, bias, bias.bfloat16()):
            x = randn(tokens, inner)
            expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
            with torch.no_grad():
                record("linear bf16 weight", ops.linear(x, weight, b), expected)
            if tokens and outer:
                x.requires_grad_()
                seed = randn(tokens, outer)
                (gradient,) = torch.autograd.grad(ops.linear(x, weight, b), x, seed)
                record("linear bf16 weight dx", gradient, seed.double() @ weight.double())
    x, weight = randn(2, 3, 50), randn(40, 50)
    record("linear three axes", ops.linear(x, weight.bfloat16()), F.linear(x.double(), weight.bfloat16().double()))
    for tokens in range(1, 18):
        x = randn(tokens, 50)
        record("linear f32 thin", ops.linear(x, weight), F.linear(x.double(), weight.double()))


FORMS = [(8, 0, False), (8, 32, False), (8, 64, False), (8, 128, False)]
FORMS += [(4, group, asymmetric) for group in (32, 64, 128) for asymmetric in (False, True)]


def quantized(weight, bits, group, asymmetric):
    packed, scales, minima = torch.ops.martlet.quantize_weight(weight, bits, group, asymmetric)
    return packed, scales, minima if asymmetric else None


def per_column(part, inner, group):
    return part.double().repeat_interleave(group or max(inner, 1), 1)[:, :inner]


def check_quantized_linear():
    ops = torch.ops.martlet
    for tokens, inner, outer in SIZES:
        weight = randn(outer, inner) * torch.exp(randn(outer, 1))
        weight[: outer // 3] += 2
        for bits, group, asymmetric in FORMS:
            name = f"int{bits}" + (" asymmetric" if asymmetric else "")
            parts = quantized(weight, bits, group, asymmetric)
            dense = ops.dequantize_weight(*parts, inner, bits, group)
            if outer:
                # Round to nearest: half a step, and the step no larger than bf16's rounding makes it.
                step = per_column(parts[1], inner, group)
                slack = 1e-6 * weight.abs().max()
                record_bound(f"{name} error", bool(((weight.double() - dense.double()).abs() <= step / 2 + slack).all()))
                span = weight.new_zeros(outer, -(-inner // (group or inner)) * (group or inner)).double()
                span[:, :inner] = weight
                if inner % (group or inner) == 0:
                    groups = span.view(outer, -1, group or inner)
                    ideal = (groups.amax(2) - groups.amin(2)) / 16 if asymmetric else groups.abs().amax(2) / (7.5 if bits == 4 else 127.5)
                    # A minimum's rounding is a share of the minimum, not of the range.
                    margin = groups.abs().amax(2) * 2.0**-7 if asymmetric else 0
                    record_bound(f"{name} step", bool((parts[1].double() <= ideal * (1 + 2.0**-7) + margin + 1e-30).all()))
            for b in (None, randn(outer)):
                x = randn(tokens, inner)
                expected = F.linear(x.double(), dense.double(), None if b is None else b.double())
                record(f"quantized linear {name}", ops.quantized_linear(x, *parts, b, bits, group), expected)
                if outer:
                    x.requires_grad_()
                    given = [x] + ([] if b is None else [b.requires_grad_()])
                    seed = randn(tokens, outer)
                    gradients = torch.autograd.grad(ops.quantized_linear(x, *parts, b, bits, group), given, seed)
                    record("quantized linear dx", gradients[0], seed.double() @ dense.double())
                    if b is not None:
                        record("quantized linear dbias", gradients[1], seed.double().sum(0))
    # What is expected of uniform rounding: rms error step / sqrt(12), a little more because a group's outermost values are half a
    # step off.
    weight = randn(256, 1024)
    for bits, group, asymmetric in FORMS:
        parts = quantized(weight, bits, group, asymmetric)
        dense = ops.dequantize_weight(*parts, 1024, bits, group)
        expected = (per_column(parts[1], 1024, group).square().mean() / 12).sqrt()
        ratio = ((weight - dense).double().square().mean().sqrt() / expected).item()
        record_bound(f"int{bits} rms error is {ratio:.3f} of step / sqrt(12)", 0.9 < ratio < 1.05)
        rows = torch.cat([ops.quantized_linear(weight[:2], *[None if p is None else p[i : i + 64] for p in parts], None, bits, group)
                          for i in range(0, 256, 64)], 1)
        record("quantized linear by rows", rows, ops.quantized_linear(weight[:2], *parts, None, bits, group))
    zeros = torch.zeros(3, 64)
    for bits, group, asymmetric in FORMS:
        parts = quantized(zeros, bits, group, asymmetric)
        record_bound("zeros", bool((ops.dequantize_weight(*parts, 64, bits, group) == 0).all()))
        tiny = quantized(zeros + 1e-42, bits, group, asymmetric)
        record_bound("tiny", bool(ops.dequantize_weight(*tiny, 64, bits, group).isfinite().all()))
        for half in (torch.bfloat16, torch.float16):
            low = randn(300, 70).to(half)
            for a, b in zip(quantized(low, bits, group, asymmetric), quantized(low.float(), bits, group, asymmetric)):
                record_bound("half weights", a is b or bool((a == b).all()))
    parts = quantized(randn(5, 64), 4, 32, True)
    x = randn(2, 64)
    expect_error("packed", lambda: ops.quantized_linear(randn(2, 192), *parts, None, 4, 32))
    expect_error("scales", lambda: ops.quantized_linear(x, *parts, None, 4, 64))
    expect_error("minima", lambda: ops.quantized_linear(x, *parts[:2], parts[2][:3].contiguous(), None, 4, 32))
    expect_error("group", lambda: ops.quantized_linear(x, *parts, None, 4, 48))
    expect_error("bits", lambda: ops.quantized_linear(x, *parts, None, 3, 32))
    expect_error("bias", lambda: ops.quantized_linear(x, *parts, randn(4), 4, 32))
    expect_error("float32", lambda: ops.quantized_linear(x.double(), *parts, None, 4, 32))
    expect_error("finite", lambda: ops.quantize_weight(torch.full((2, 32), float("nan")), 8, 0))
    expect_error("symmetric", lambda: ops.quantize_weight(x, 8, 0, True))


def check_joined_linear():
    ops = torch.ops.martlet
    for tokens, inner, outers in [(1, 64, (64, 16, 16)), (5, 33, (10, 37, 1)), (8, 200, (20,)), (40, 48, (65, 7, 32)), (2, 16, (3, 0, 20)), (0, 8, (4, 4))]:
        weights = [randn(n, inner) for n in outers]
        biases = [None if i % 2 else randn(n) for i, n in enumerate(outers)]
        x = randn(2, tokens, inner)

        def expected(weights):
            return torch.cat([F.linear(x.double(), w.double(), None if b is None else b.double()) for w, b in zip(weights, biases)], -1)

        for some in (weights, [w.bfloat16() for w in weights]):
            record("joined_linear", ops.joined_linear(x, some, biases), expected(some))
        for bits, group, asymmetric in FORMS:
            parts = [quantized(w, bits, group, asymmetric) for w in weights]
            dense = [ops.dequantize_weight(*p, inner, bits, group) for p in parts]
            ours = ops.joined_quantized_linear(x, *(list(p) for p in zip(*parts)), biases, bits, group)
            record("joined_quantized_linear", ours, expected(dense))
        if tokens:
            x.requires_grad_()
            for w in weights:
                w.requires_grad_()
            y = ops.joined_linear(x, weights, biases)
            seed = randn(*y.shape)
            for g, e in zip(torch.autograd.grad(y, [x] + weights, seed), torch.autograd.grad(expected(weights), [x] + weights, seed.double())):
                record("joined_linear gradients", g, e)
            (g,) = torch.autograd.grad(ops.joined_quantized_linear(x, *(list(p) for p in zip(*parts)), biases, bits, group), x, seed)
            record("joined_quantized_linear dx", g, torch.autograd.grad(expected(dense), x, seed.double())[0])
    expect_error("biases", lambda: ops.joined_linear(x, weights, []))
    expect_error("linear", lambda: ops.joined_linear(x, [randn(3, inner + 1)], [None]))


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def check_feed_forward():
    ops = torch.ops.martlet
    sizes = [(1, 48, 100, 40), (3, 33, 65, 17), (8, 128, 300, 128), (9, 64, 130, 20), (130, 40, 70, 33), (600, 32, 96, 24), (0, 4, 5, 6)]
    for tokens, inner, hidden, outer in sizes:
        gate, up, down = randn(hidden, inner) / inner**0.5, randn(hidden, inner) / inner**0.5, randn(outer, hidden) / hidden**0.5
        b1, b2 = randn(hidden), randn(outer)
        for name, act in ACTIVATIONS.items():

            def plain(x, w1, b1, w2, b2):
                y = [t if t is None else t.double() for t in (x, w1, b1, w2, b2)]
                return F.linear(act(F.linear(y[0], y[1], y[2])), y[3], y[4])

            def gated(x, gate, up, down):
                x, gate, up, down = (t.double() for t in (x, gate, up, down))
                return F.linear(act(F.linear(x, gate)) * F.linear(x, up), down)

            x = randn(tokens, inner)
            low = [t.bfloat16() for t in (gate, up, down, b1, b2)]
            with torch.no_grad():
                record(f"mlp {name}", ops.mlp(x, gate, b1, down, b2, name), plain(x, gate, b1, down, b2))
                record(f"gated_mlp {name}", ops.gated_mlp(x, gate, up, down, name), gated(x, gate, up, down))
                record("mlp bf16 weights", ops.mlp(x, low[0], b1, low[2], low[4], name), plain(x, low[0], b1, low[2], low[4]))
                record("mlp no bias", ops.mlp(x, low[0], None, low[2], None, name), plain(x, low[0], None, low[2], None))
                record("gated_mlp bf16 weights", ops.gated_mlp(x, *low[:3], name), gated(x, *low[:3]))
            if tokens:
                x.requires_grad_()
                seed = randn(tokens, outer)
                for form, ours, expected in (
                    ("mlp dx", ops.mlp(x, gate, b1, down, b2, name), plain(x, gate, b1, down, b2)),
                    ("gated_mlp dx", ops.gated_mlp(x, gate, up, down, name), gated(x, gate, up, down)),
                    ("gated_mlp bf16 weights dx", ops.gated_mlp(x, *low[:3], name), gated(x, *low[:3])),
                ):
                    (g,) = torch.autograd.grad(ours, x, seed)
                    (e,) = torch.autograd.grad(expected, x, seed.double())
                    record(form, g, e)
            for bits, group, asymmetric in FORMS if name in ("silu", "quick_gelu") else []:
                parts = [quantized(w, bits, group, asymmetric) for w in (gate, up, down)]
                dense = [ops.dequantize_weight(*p, w.shape[1], bits, group) for p, w in zip(parts, (gate, up, down))]

                def ours_gated(x):
                    return ops.quantized_gated_mlp(x, *parts[0], *parts[1], *parts[2], bits, group, name)

                def ours_plain(x):
                    return ops.quantized_mlp(x, *parts[0], b1, *parts[2], b2, bits, group, name)

                with torch.no_grad():
                    record("quantized_gated_mlp", ours_gated(x), gated(x, *dense))
                    record("quantized_mlp", ours_plain(x), plain(x, dense[0], b1, dense[2], b2))
                if tokens:
                    (g,) = torch.autograd.grad(ours_gated(x), x, seed)
                    (e,) = torch.autograd.grad(gated(x, *dense), x, seed.double())
                    record("quantized_gated_mlp dx", g, e)
                    (g,) = torch.autograd.grad(ours_plain(x), x, seed)
                    (e,) = torch.autograd.grad(plain(x, dense[0], b1, dense[2], b2), x, seed.double())
                    record("quantized_mlp dx", g, e)
    parts = [quantized(w, 4, 32, False) for w in (gate, up, down)]
    expect_error("w_up", lambda: ops.quantized_gated_mlp(x, *parts[0], *parts[2], *parts[2], 4, 32, "silu"))
    expect_error("activation", lambda: ops.quantized_gated_mlp(x, *parts[0], *parts[1], *parts[2], 4, 32, "swish"))


def expected_step(q, k, v, lengths, window=-1, scale=None, bias=None, softcap=None):
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, width = q.shape
    k, v = (t.repeat_interleave(heads // k.shape[1], 1) for t in (k, v))
    scores = torch.einsum("bhd,bhsd->bhs", q, k) * (width**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.double()
    place = torch.arange(k.shape[2])
    closed = place >= lengths[:, None]
    if window >= 0:
        closed = closed | (place < lengths[:, None] - 1 - window)
    scores = scores.masked_fill(closed[:, None], float("-inf"))
    return torch.einsum("bhs,bhsd->bhd", scores.softmax(-1).nan_to_num(0), v)


def int8_cache(x):
    scale = (x.abs().amax(-1) / 127).clamp(min=1e-30)
    return (x / scale[..., None]).round().to(torch.int8), scale


def check_attention_step():
    step = torch.ops.martlet.attention_step
    sizes = [(1, 4, 4, 70, 32), (2, 8, 2, 1300, 64), (3, 6, 1, 129, 33), (1, 2, 2, 5, 7), (2, 16, 2, 600, 128)]
    for batch, heads, key_heads, capacity, width in sizes:
        q, k, v = randn(batch, heads, width), randn(batch, key_heads, capacity, width), randn(batch, key_heads, capacity, width + 3)
        lengths = torch.randint(1, capacity + 1, (batch,), generator=generator)
        lengths[0] = capacity
        kq, ks = int8_cache(k)
        vq, vs = int8_cache(v)
        caches = {
            "f32": ((k, v), (k, v), {}),
            "bf16": ((k.bfloat16(), v.bfloat16()), (k.bfloat16(), v.bfloat16()), {}),
            "int8": ((kq, vq), (kq.double() * ks.double()[..., None], vq.double() * vs.double()[..., None]),
                     {"key_scales": ks, "value_scales": vs}),
        }
        for kind, (stored, exact, scales) in caches.items():
            for window in (-1, 0, 17):
                for softcap in (None, 50.0, 0.7):
                    for bias in (None, randn(capacity), randn(heads, capacity), randn(1, capacity), randn(batch, 1, capacity)):
                        for scale in (None, 0.3):
                            ours = step(q, *stored, lengths, window, scale, bias, softcap, **scales)
                            record(f"attention_step {kind}", ours, expected_step(q, *exact, lengths, window, scale, bias, softcap))
        bias = randn(heads, capacity).masked_fill(torch.rand(heads, capacity, generator=generator) < 0.5, float("-inf"))
        bias[:, : capacity // 2] = float("-inf")
        record("attention_step closed by bias", step(q, k, v, lengths, bias=bias), expected_step(q, k, v, lengths, bias=bias))
    expect_error("key_scales", lambda: step(q, kq, vq, lengths))
    expect_error("bias", lambda: step(q, k, v, lengths, bias=randn(heads, capacity + 1)))
    expect_error("softcap", lambda: step(q, k, v, lengths, softcap=0.0))
    expect_error("lengths", lambda: step(q, k, v, lengths + capacity))


def turned(x, cosine, sine):
    pairs = cosine.shape[-1]
    a, b = x[..., :pairs], x[..., pairs : 2 * pairs]
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine, x[..., 2 * pairs :]], -1)


def check_rotary():
    ops = torch.ops.martlet
    for batch, heads, key_heads, length, width, pairs in [(2, 4, 2, 9, 64, 32), (1, 3, 3, 50, 20, 3), (3, 8, 1, 1, 33, 16), (2, 2, 1, 4, 6, 0)]:
        for rows in (False, True):
            angle = randn(batch, 1, length, pairs) if rows else randn(length, pairs)
            cosine, sine = angle.cos(), angle.sin()
            x = randn(batch, length, 3, heads, width)[:, :, 1].transpose(1, 2).requires_grad_()
            y, expected = ops.rotary(x, cosine, sine), turned(x.double(), cosine.double(), sine.double())
            record("rotary", y, expected)
            seed = randn(*y.shape)
            record("rotary dx", torch.autograd.grad(y, x, seed)[0], torch.autograd.grad(expected, x, seed.double())[0])
        for rows in (None, 1, batch):
            for kind in (torch.float32, torch.bfloat16, torch.int8):
                fused = randn(batch, (heads + 2 * key_heads) * width)
                q, k, v = (t.view(batch, -1, width) for t in fused.split([heads * width, key_heads * width, key_heads * width], 1))
                capacity = 12
                caches = [(randn(batch, key_heads, capacity, width) * 9).to(kind) for _ in range(2)]
                before = [c.clone() for c in caches]
                scales = [randn(batch, key_heads, capacity) for _ in range(2)] if kind == torch.int8 else [None, None]
                entries = torch.randint(0, capacity, (batch,), generator=generator)
                angle = None if rows is None else randn(rows, 1, 1, pairs)
                cosine, sine = (None, None) if angle is None else (angle.cos(), angle.sin())
                got = ops.cache_append_rotary(q, k, v, cosine, sine, *caches, entries, *scales)
                q64, k64, v64 = q.double(), k.double(), v.double()
                if angle is not None:
                    c64, s64 = cosine.double().view(rows, 1, pairs), sine.double().view(rows, 1, pairs)
                    q64, k64 = turned(q64, c64, s64), turned(k64, c64, s64)
                record("cache_append_rotary query", got, q64)
                for name, cache, old, expected, scale in zip(("key", "value"), caches, before, (k64, v64), scales):
                    written = torch.zeros(batch, 1, capacity, 1, dtype=torch.bool)
                    written[torch.arange(batch), :, entries] = True
                    record_bound("entries untouched", bool((cache == old).masked_fill(written, True).all()))
                    found = torch.stack([cache[b, :, e].double() for b, e in enumerate(entries.tolist())])
                    if kind == torch.int8:
                        steps = torch.stack([scale[b, :, e].double() for b, e in enumerate(entries.tolist())])[..., None]
                        record_bound("int8 step", bool((steps[..., 0] <= expected.abs().amax(-1) / 127 * 1.000001 + 1e-30).all()))
                        record_bound("int8 rounding", bool(((found * steps - expected).abs() <= steps * 0.50001).all()))
                    elif kind == torch.bfloat16:
                        record_bound("bf16 rounding", bool(((found - expected).abs() <= expected.abs() * 2.0**-8 * 1.0001 + 1e-6).all()))
                    else:
                        record(f"cache_append_rotary {name}", found, expected)
    expect_error("entries", lambda: ops.cache_append_rotary(q, k, v, None, None, *caches, entries + capacity, *scales))
    expect_error("key_cache", lambda: ops.cache_append_rotary(q, k, v, None, None, caches[0][:, :, ::2], caches[1], entries, *scales))
    expect_error("scales", lambda: ops.cache_append_rotary(q, k, v, None, None, *caches, entries))


def expected_attention(q, k, v, mask=None, causal=False, left=-1, right=-1, scale=None, bias=None, softcap=None):
    q, k, v = q.double(), k.double(), v.double()
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    length, keys = q.shape[2], k.shape[2]
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias.double()
    i, j = torch.arange(length)[:, None] + keys - length, torch.arange(keys)
    closed = torch.zeros(length, keys, dtype=torch.bool)
    if causal:
        closed = closed | (j > i)
    if left >= 0:
        closed = closed | (j < i - left)
    if right >= 0:
        closed = closed | (j > i + right)
    closed = closed if mask is None else closed | ~mask[:, None, None]
    scores = scores.masked_fill(closed, float("-inf"))
    return (scores.softmax(-1).nan_to_num(0) @ v), scores.logsumexp(-1)


def check_attention():
    attend = torch.ops.martlet.attention
    for batch, heads, key_heads, length, keys, width in [(2, 4, 2, 70, 70, 32), (1, 3, 3, 33, 130, 20), (2, 2, 1, 5, 9, 64), (1, 1, 1, 200, 200, 16)]:
        q = randn(batch, length, heads, width).transpose(1, 2)
        k, v = (randn(batch, keys, key_heads, w).transpose(1, 2) for w in (width, width + 5))
        mask = torch.rand(batch, keys, generator=generator) < 0.7
        mask[:, 0] = True
        biases = [None, randn(length, keys), randn(heads, 1, keys), randn(1, length, keys), randn(batch, heads, length, keys), randn(keys)]
        for bias in biases:
            for softcap in (None, 50.0, 0.7):
                for causal, left, right, m in ((False, -1, -1, None), (True, -1, -1, None), (True, 9, -1, mask), (False, 20, 3, None)):
                    ours, lse = attend(q, k, v, m, causal, left, right, 0.4, bias, softcap)
                    expected, expected_lse = expected_attention(q, k, v, m, causal, left, right, 0.4, bias, softcap)
                    record("attention bias softcap", ours, expected)
                    open_rows = expected_lse.isfinite()
                    record("attention bias softcap lse", lse.where(open_rows, 0), expected_lse.where(open_rows, 0))
        bias = randn(heads, length, keys).masked_fill(torch.rand(heads, length, keys, generator=generator) < 0.6, float("-inf"))
        bias[:, 3] = float("-inf")
        ours, _ = attend(q, k, v, None, False, -1, -1, None, bias)
        record("attention closed by bias", ours, expected_attention(q, k, v, bias=bias)[0])
    q.requires_grad_()
    expect_error("reference form", lambda: attend(q, k, v, None, False, -1, -1, None, None, 5.0))
    expect_error("reference form", lambda: attend(q, k, v, None, False, -1, -1, None, randn(keys)))
    with torch.no_grad():
        expect_error("bias", lambda: attend(q, k, v, None, False, -1, -1, None, randn(keys + 1)))


def check_attention_packed():
    attend = torch.ops.martlet.attention_packed
    cases = [([25, 3, 40, 0, 1, 16], 12, 12, 32), ([70, 130, 5], 4, 2, 20), ([600], 2, 1, 64), ([17] * 40, 3, 3, 16), ([0], 2, 2, 8), ([], 2, 2, 8)]
    for lengths, heads, key_heads, width in cases:
        total = sum(lengths)
        offsets = torch.tensor([0] + lengths).cumsum(0)
        fused = randn(total, heads + 2 * key_heads, width)
        q, k, v = fused.split([heads, key_heads, key_heads], 1)
        v = torch.cat([v, randn(total, key_heads, 5)], 2)
        q, k, v = (t.requires_grad_() for t in (q, k, v))
        for causal, left, right, scale, softcap in ((False, -1, -1, None, None), (True, -1, -1, 0.3, None), (True, 10, -1, None, 0.8), (False, 6, 2, None, None)):

            def expected(q, k, v):
                parts = [
                    expected_attention(*(t[a:b].transpose(0, 1)[None] for t in (q, k, v)), None, causal, left, right, scale, None, softcap)
                    for a, b in zip(offsets[:-1], offsets[1:])
                ]
                out = [torch.zeros(0, heads, width + 5)] + [o[0].transpose(0, 1) for o, _ in parts]
                return torch.cat(out), torch.cat([torch.zeros(heads, 0)] + [l[0] for _, l in parts], 1)

            with torch.no_grad():
                out, lse = attend(q, k, v, offsets, causal, left, right, scale, softcap)
                record("attention_packed", out, expected(q, k, v)[0])
                record("attention_packed lse", lse, expected(q, k, v)[1])
                low = [t.bfloat16() for t in (q, k, v)]
                bf16 = attend(*low, offsets, causal, left, right, scale, softcap)[0]
                if total:
                    error = (bf16.double() - expected(*low)[0]).abs().max() / expected(*low)[0].abs().max()
                    record_bound(f"attention_packed bf16 {error:.1e}", error < 2**-8)
            if softcap is None and total:
                seed = randn(total, heads, width + 5)
                ours = torch.autograd.grad(attend(q, k, v, offsets, causal, left, right, scale)[0], (q, k, v), seed)
                for name, g, e in zip("qkv", ours, torch.autograd.grad(expected(q, k, v)[0], (q, k, v), seed.double())):
                    # Where a query sees one key, its gradient is a difference of equal numbers.
                    if (e.abs().max() > 1e-3).item():
                        record(f"attention_packed d{name}", g, e)
    q, k, v = (randn(10, 2, 8) for _ in range(3))
    for bad in ([0, 5], [1, 10], [0, 7, 6, 10], []):
        expect_error("offsets", lambda: attend(q, k, v, torch.tensor(bad, dtype=torch.long)))
    expect_error("offsets", lambda: attend(q, k, v, torch.tensor([0, 10], dtype=torch.int32)))
    expect_error("heads", lambda: attend(q, k[:, :1].repeat(1, 3, 1), v[:, :1].repeat(1, 3, 1), torch.tensor([0, 10])))


CHECKS = [check_mixed_linear, check_quantized_linear, check_joined_linear, check_feed_forward, check_attention_step, check_rotary]
CHECKS += [check_attention, check_attention_packed]

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.ops.load_library(sys.argv[1])
    for check in CHECKS:
        check()
    for name, error in sorted(worst.items()):
        print(f"{error:.1e}  {name}{'' if error <= TOLERANCE else '  OVER TOLERANCE'}")
    sys.exit(any(error > TOLERANCE for error in worst.values()))
