"""Causal attention to the own block of 4096 positions and the one before, with rotary positions: scaled_dot_product_attention block by block."""

import torch
import torch.nn.functional as F
from mixers import softmax

BLOCK = 4096


class BlockAttention(softmax.Attention):
    def attend(self, q, k, v):
        length = q.shape[2]
        rows = []
        for start in range(0, length, BLOCK):
            end, first = min(start + BLOCK, length), max(0, start - BLOCK)
            if first == start:
                rows.append(F.scaled_dot_product_attention(q[:, :, start:end], k[:, :, start:end], v[:, :, start:end], is_causal=True))
                continue
            seen = torch.ones(end - start, end - first, dtype=torch.bool).tril(start - first)
            rows.append(F.scaled_dot_product_attention(q[:, :, start:end], k[:, :, first:end], v[:, :, first:end], attn_mask=seen))
        return torch.cat(rows, 2)


def layer(width, heads, length):
    return BlockAttention(width, heads)
