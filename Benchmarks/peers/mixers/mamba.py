"""Mamba's selective state space in plain operators, as a careful user runs it on a CPU: chunks of 64 tokens, each solved by a parallel scan of
(decay, input) pairs, the state carried between chunks, and from 16k on every chunk recomputed in the backward pass, or memory would run out.
The authors' public reference, `selective_scan_ref`, is a loop over tokens; run this file to time it against the chunks at 1k."""

import torch
import torch.nn.functional as F

CHUNK = 64


def scan(decay, written):
    """Inclusive along axis 1, by doubling: h_t = decay_t h_{t-1} + written_t."""
    reach = 1
    while reach < decay.shape[1]:
        written = torch.cat([written[:, :reach], decay[:, reach:] * written[:, :-reach] + written[:, reach:]], 1)
        decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], 1)
        reach *= 2
    return decay, written


def chunk(u, delta, A, B, C, h):
    step = delta[..., None]
    decay, written = scan((step * A).exp(), (delta * u)[..., None] * B[:, :, None])
    states = decay * h[:, None] + written
    return (states @ C[..., None])[..., 0], states[:, -1]


class RecomputedChunk(torch.autograd.Function):
    """A chunk that is computed again in the backward pass. (torch.utils.checkpoint without reentrance keeps all chunks' tensors until the
    end of that pass.)"""

    @staticmethod
    def forward(context, *inputs):
        context.save_for_backward(*inputs)
        return chunk(*inputs)

    @staticmethod
    def backward(context, *upstream):
        inputs = [x.detach().requires_grad_() for x in context.saved_tensors]
        with torch.enable_grad():
            outputs = chunk(*inputs)
        return torch.autograd.grad(outputs, inputs, upstream)


def loop(u, delta, A, B, C):
    h = torch.zeros(u.shape[0], u.shape[2], A.shape[1])
    decay = (delta[..., None] * A).exp()
    written = (delta * u)[..., None] * B[:, :, None]
    outputs = []
    for t in range(u.shape[1]):
        h = decay[:, t] * h + written[:, t]
        outputs.append((h * C[:, t, None]).sum(-1))
    return torch.stack(outputs, 1)


def chunks(u, delta, A, B, C):
    h = torch.zeros(u.shape[0], u.shape[2], A.shape[1])
    outputs = []
    for u_c, delta_c, B_c, C_c in zip(*(x.split(CHUNK, 1) for x in (u, delta, B, C))):
        inputs = (u_c, delta_c, A, B_c, C_c, h)
        y, h = RecomputedChunk.apply(*inputs) if u.shape[1] > 4096 else chunk(*inputs)
        outputs.append(y)
    return torch.cat(outputs, 1)


class Mamba(torch.nn.Module):
    def __init__(self, width, by_token=False):
        super().__init__()
        self.inner, self.states, self.rank, self.by_token = 2 * width, 16, (width + 15) // 16, by_token
        self.input = torch.nn.Linear(width, 2 * self.inner, bias=False)
        self.convolution = torch.nn.Conv1d(self.inner, self.inner, 4, padding=3, groups=self.inner)
        self.selection = torch.nn.Linear(self.inner, self.rank + 2 * self.states, bias=False)
        self.step = torch.nn.Linear(self.rank, self.inner)
        self.log_a = torch.nn.Parameter(torch.arange(1.0, self.states + 1).log().repeat(self.inner, 1))
        self.skip = torch.nn.Parameter(torch.ones(self.inner))
        self.output = torch.nn.Linear(self.inner, width, bias=False)
        torch.nn.init.constant_(self.step.bias, -4.6)

    def forward(self, x):
        length = x.shape[1]
        u, z = self.input(x).chunk(2, -1)
        u = F.silu(self.convolution(u.transpose(1, 2))[..., :length].transpose(1, 2))
        delta, B, C = self.selection(u).split([self.rank, self.states, self.states], -1)
        delta = F.softplus(self.step(delta))
        A = -self.log_a.exp()
        y = (loop if self.by_token else chunks)(u, delta, A, B, C)
        return self.output((y + u * self.skip) * F.silu(z))


def layer(width, heads, length):
    return Mamba(width)


def operator(width, heads, length):
    channels, states = 2 * width, 16
    u, delta = torch.randn(1, length, channels), F.softplus(torch.randn(1, length, channels) - 4)
    B, C = (torch.randn(1, length, states) for _ in range(2))
    return [u, delta, -torch.rand(channels, states) * states, B, C], chunks


if __name__ == "__main__":
    import time

    for name, by_token in (("chunks", False), ("token by token", True)):
        model, x = Mamba(256, by_token), torch.randn(1, 1024, 256)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            model(x).sum().backward()
            times.append(time.perf_counter() - start)
        print(f"{name}: {1000 * min(times):.1f} ms forward+backward at 1k")
