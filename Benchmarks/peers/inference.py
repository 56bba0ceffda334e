"""PyTorch peers of Martlet's inference kernels: `CASES` maps a name to a function that prepares tensors and returns a thunk.

Sizes in the names: M rows of activations, in × out weights, B batch, H heads, S cache length, d head width. Weights are taken in turn
from enough layers that none is in cache when it is read, as in decoding.
"""
import torch
import torch.nn.functional as F

LAYERS = 12


def _randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _layers(make):
    """Runs one of `make(i)`'s thunks after the other, all of them in one call."""

    def setup():
        thunks = [make(i) for i in range(LAYERS)]

        def run():
            with torch.no_grad():
                for thunk in thunks:
                    y = thunk()
                return y

        return run

    return setup


def _linear(rows, inner, outer, dtype):
    def make(i):
        x, weight = _randn(rows, inner).to(dtype), _randn(outer, inner, seed=i).to(dtype)
        return lambda: F.linear(x, weight)

    return _layers(make)


def _swiglu(rows, width, hidden, dtype):
    def make(i):
        x = _randn(rows, width).to(dtype)
        gate, up, down = ((_randn(*s, seed=3 * i + j) / s[1] ** 0.5).to(dtype) for j, s in enumerate([(hidden, width)] * 2 + [(width, hidden)]))
        return lambda: F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)

    return _layers(make)


def sentence_lengths(count=250):
    """Tokens of short sentences: a mean of 25, from 4 to 64."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(5)) * 0.55 + 3.05
    return drawn.exp().round().long().clamp(4, 64)


def _padded(heads, width, sort):
    def setup():
        lengths = sentence_lengths()
        if sort:
            lengths = lengths.sort().values
        batches = []
        for some in lengths.split(32):
            longest = int(some.max())
            query, key, value = (_randn(len(some), heads, longest, width, seed=i) for i in range(3))
            mask = (torch.arange(longest) < some[:, None])[:, None, None]
            batches.append((query, key, value, mask))

        def run():
            with torch.no_grad():
                return [F.scaled_dot_product_attention(q, k, v, attn_mask=m) for q, k, v, m in batches]

        return run

    return setup


def _rotary(batch, heads, length, width):
    def setup():
        x = _randn(batch, length, heads, width).transpose(1, 2)
        cosine, sine = _randn(length, width // 2, seed=1), _randn(length, width // 2, seed=2)

        def run():
            a, b = x[..., : width // 2], x[..., width // 2 :]
            return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)

        return run

    return setup


CASES = {}
for rows in (1, 4, 8, 512):
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        CASES[f"linear {name} M{rows} 768x2048"] = _linear(rows, 768, 2048, dtype)
        CASES[f"swiglu {name} M{rows} 768x2048"] = _swiglu(rows, 768, 2048, dtype)
CASES["sdpa 250 sentences padded H12 d32"] = _padded(12, 32, sort=False)
CASES["sdpa 250 sentences sorted padded H12 d32"] = _padded(12, 32, sort=True)
CASES["rotary B1 H12 L512 d64"] = _rotary(1, 12, 512, 64)
