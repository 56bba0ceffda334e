"""Causal attention over the last 64 positions and the own one, by blocks of 64 queries that see two blocks of keys."""

import torch
import torch.nn.functional as F
from mixers import softmax

WINDOW = 64


class WindowAttention(softmax.Attention):
    def attend(self, q, k, v):
        batch, heads, length, d = q.shape
        blocks = length // WINDOW

        def pairs(x):  # each block with the one before it
            x = F.pad(x, (0, 0, WINDOW, 0)).view(batch, heads, blocks + 1, WINDOW, d)
            return torch.cat([x[:, :, :-1], x[:, :, 1:]], 3)

        i, j = torch.arange(WINDOW)[:, None] + WINDOW, torch.arange(2 * WINDOW)
        seen = (j <= i) & (i - j <= WINDOW)
        seen = seen.expand(blocks, -1, -1).clone()
        seen[0] &= j >= WINDOW
        y = F.scaled_dot_product_attention(q.reshape(batch, heads, blocks, WINDOW, d), pairs(k), pairs(v), attn_mask=seen)
        return y.reshape(batch, heads, length, d)


def layer(width, heads, length):
    return WindowAttention(width, heads)
