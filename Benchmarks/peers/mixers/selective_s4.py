"""Selective S4 with half of the tokens kept: guide features by a copy of the layer, scores, top-K, and S4D both ways over what is kept."""

import copy
import torch
import torch.nn.functional as F
from mixers import s4d

LENGTHS = (1024, 4096, 16384)


class SelectiveS4(torch.nn.Module):
    def __init__(self, width, ratio=0.5):
        super().__init__()
        self.s4 = s4d.S4D(width, directions=2)
        self.selector = torch.nn.Module()
        self.selector.local = torch.nn.Linear(width, width // 2)
        self.selector.hidden = torch.nn.Linear(width, width // 2)
        self.selector.score = torch.nn.Linear(width // 2, 1, bias=False)
        self.guide = copy.deepcopy(self.s4).requires_grad_(False)
        self.ratio = ratio

    def forward(self, x):
        with torch.no_grad():
            g = self.guide(x)
        s = self.selector
        local = F.relu(s.local(g))
        pair = torch.cat([local, local.mean(1, keepdim=True).expand_as(local)], -1)
        z = s.score(F.gelu(s.hidden(pair))).squeeze(-1)
        if self.training:
            z = z - torch.log(-torch.log(torch.rand_like(z).clamp(min=1e-20)))
        kept = round((1 - self.ratio) * x.shape[1])
        index = z.topk(kept, dim=1).indices.sort(dim=1).values
        soft = z.softmax(-1).gather(1, index)
        index = index[..., None].expand(-1, -1, x.shape[-1])
        y = self.s4(x.gather(1, index) * (1 + soft - soft.detach())[..., None])
        return torch.zeros_like(x).scatter(1, index, y)


def layer(width, heads, length):
    return SelectiveS4(width)
