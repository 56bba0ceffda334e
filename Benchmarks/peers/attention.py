"""PyTorch peers of Martlet's softmax attention: `CASES` maps a name to a function that prepares tensors and returns a thunk.

Sizes in the names: B batch, H heads, L length, d head width. "train" is forward and backward, "forward" is inference,
"step" one token against a cache.
"""
import torch
import torch.nn.functional as F


def _inputs(B, H, L, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # views of one fused projection, as a transformer block makes them
    return [t.transpose(1, 2) for t in torch.randn(B, L, 3, H, d, generator=generator).unbind(2)]


def _train(attend, B, H, L, d):
    def setup():
        query, key, value = (t.contiguous().requires_grad_() for t in _inputs(B, H, L, d))
        gradient = torch.randn(B, H, L, d, generator=torch.Generator().manual_seed(1))

        def run():
            return torch.autograd.grad(attend(query, key, value), (query, key, value), gradient)

        return run

    return setup


def _forward(attend, B, H, L, d):
    def setup():
        query, key, value = _inputs(B, H, L, d)

        def run():
            with torch.no_grad():
                return attend(query, key, value)

        return run

    return setup


def _step(attend, B, H, Hk, S, d):
    def setup():
        generator = torch.Generator().manual_seed(0)
        query = torch.randn(B, H, 1, d, generator=generator)
        key, value = (torch.randn(B, Hk, S, d, generator=generator) for _ in range(2))

        def run():
            with torch.no_grad():
                return attend(query, key, value)

        return run

    return setup


def sdpa(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def plain(query, key, value):
    """The scores written out, as the reference form does."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    length = query.shape[2]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value


def sdpa_step(query, key, value):
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=query.shape[1] != key.shape[1])


SIZES = [(4, 4, 64, 16), (8, 8, 512, 32), (1, 8, 1024, 32), (1, 8, 1024, 64),
         (1, 8, 4096, 32), (1, 8, 4096, 64), (1, 8, 16384, 64), (1, 1, 4096, 64)]
STEPS = [(1, 12, 12, 512, 64), (1, 12, 4, 512, 64), (1, 8, 8, 4096, 64),
         (8, 8, 8, 1024, 64), (1, 8, 2, 65536, 64), (1, 8, 8, 65536, 64), (1, 1, 1, 524288, 64)]

CASES = {}
for B, H, L, d in SIZES:
    size = f"B{B} H{H} L{L} d{d}"
    CASES[f"sdpa train causal {size}"] = _train(sdpa, B, H, L, d)
    CASES[f"sdpa forward causal {size}"] = _forward(sdpa, B, H, L, d)
    if L <= 1024:
        CASES[f"plain train causal {size}"] = _train(plain, B, H, L, d)
for B, H, Hk, S, d in STEPS:
    CASES[f"sdpa step B{B} H{H} Hk{Hk} S{S} d{d}"] = _step(sdpa_step, B, H, Hk, S, d)
