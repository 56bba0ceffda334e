"""PyTorch peers of generation one token at a time: the GPT of gpt.py, eager, without gradients.

- `cached`: the next token against keys and values of C earlier ones, held in buffers with room for more.
- `recomputed`: the next token with no cache, by the whole context of C tokens.
"""

import gpt
import torch
import torch.nn.functional as F

CONTEXTS = (256, 4096, 16384)


def _model(context):
    torch.manual_seed(0)
    size = gpt.Size(width=256, layers=6, heads=8, batch=1, length=context + 1)
    return size, gpt.GPT(size).eval()


def cached(context):
    size, model = _model(context)
    d = size.width // size.heads
    caches = [torch.randn(2, 1, size.heads, context + 1, d) for _ in model.blocks]
    token, place = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([context])

    def run():
        with torch.no_grad():
            x = model.tokens(token) + model.positions(place)
            for block, cache in zip(model.blocks, caches):
                attention = block.attention
                q, k, v = attention.qkv(block.norm1(x)).view(1, 1, 3, size.heads, d).permute(2, 0, 3, 1, 4)
                cache[0, :, :, context : context + 1] = k
                cache[1, :, :, context : context + 1] = v
                y = F.scaled_dot_product_attention(q, cache[0], cache[1])
                x = x + attention.out(y.transpose(1, 2).reshape(1, 1, size.width))
                x = x + block.mlp(block.norm2(x))
            return model.head(model.norm(x))

    return run


def recomputed(context):
    size, model = _model(context)
    tokens = torch.zeros(1, context + 1, dtype=torch.int64)

    def run():
        with torch.no_grad():
            # A careful user projects the last position only.
            x = model.tokens(tokens) + model.positions(torch.arange(context + 1))
            for block in model.blocks:
                x = block(x)
            return model.head(model.norm(x[:, -1]))

    return run


CASES = {}
for _context in CONTEXTS:
    CASES[f"gpt-5m token cached C{_context}"] = lambda context=_context: cached(context)
    CASES[f"gpt-5m token recomputed C{_context}"] = lambda context=_context: recomputed(context)
