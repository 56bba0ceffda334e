"""A GPT training step from the fused kernels, called from PyTorch, beside the same model in PyTorch eager.

Usage: gpt_kernels.py LIBRARY.so [case name parts ...]     e.g. gpt_kernels.py libMartletKernels.so gpt-tiny
Alternates ours and each peer; prints the median ratio of neighbouring runs (above 1: ours is faster) with its spread.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import gpt  # noqa: E402


def attention_of(ops):
    if not hasattr(ops, "attention"):
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    attention = ops.attention.default
    return lambda q, k, v: attention(q, k, v, None, True, -1, -1, q.shape[-1] ** -0.5)[0]


def training_step(size):
    """The peer's model and initial weights, its arithmetic by martlet:: operators."""
    torch.manual_seed(0)
    model = gpt.GPT(size)
    ops = torch.ops.martlet
    linear, mlp, layer_norm = ops.linear.default, ops.mlp.default, ops.layer_norm.default
    cross_entropy, adamw = ops.cross_entropy.default, ops.adamw_step.default
    attend = attention_of(ops)
    embedding = torch.ops.aten.embedding.default
    parameters = list(model.parameters())
    means, squares = [torch.zeros_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters]
    blocks = []
    for block in model.blocks:
        n1, a, n2, (up, _, down) = block.norm1, block.attention, block.norm2, block.mlp
        blocks.append(
            (n1.weight, n1.bias, a.qkv.weight, a.qkv.bias, a.out.weight, a.out.bias)
            + (n2.weight, n2.bias, up.weight, up.bias, down.weight, down.bias)
        )
    tokens, targets = gpt.batch(size)
    flat_targets = targets.view(-1)
    positions = torch.arange(size.length)
    table, place, norm_weight, norm_bias = model.tokens.weight, model.positions.weight, model.norm.weight, model.norm.bias
    count = 0

    def step():
        nonlocal count
        count += 1
        batch, length, width = size.batch, size.length, size.width
        x = embedding(table, tokens) + embedding(place, positions)
        for w1, b1, wqkv, bqkv, wout, bout, w2, b2, wup, bup, wdown, bdown in blocks:
            qkv = linear(layer_norm(x, w1, b1, 1e-5), wqkv, bqkv)
            q, k, v = qkv.view(batch, length, 3, size.heads, width // size.heads).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + linear(attend(q, k, v).transpose(1, 2).reshape(batch, length, width), wout, bout)
            x = x + mlp(layer_norm(x, w2, b2, 1e-5), wup, bup, wdown, bdown, "gelu")
        logits = linear(layer_norm(x, norm_weight, norm_bias, 1e-5), table, None)
        loss = cross_entropy(logits.view(-1, size.vocabulary), flat_targets)
        gradients = torch.autograd.grad(loss, parameters)
        adamw(parameters, gradients, means, squares, 3e-4, 0.9, 0.95, 1e-8, 0.1, count)
        return loss.detach()

    return step


def seconds(step, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def main():
    torch.set_num_threads(2)
    torch.ops.load_library(sys.argv[1])
    wanted = sys.argv[2:]
    for name, case in gpt.CASES.items():
        if not all(part in name for part in wanted):
            continue
        size = gpt.SIZES[name.split()[0]]
        ours, peer = training_step(size), case()
        for first, second in zip((ours() for _ in range(3)), (peer() for _ in range(3))):
            if abs(first.item() - second.item()) > 1e-4 * second.item():
                sys.exit(f"{name}: losses differ, {first.item()} and {second.item()}")
        repeats = 1 if size.width > 64 else 20
        rounds = [(seconds(ours, repeats), seconds(peer, repeats)) for _ in range(11)]
        ratios = sorted(theirs / mine for mine, theirs in rounds)
        mine, theirs = (statistics.median(column) * 1e3 for column in zip(*rounds))
        print(f"{name:28} ours {mine:8.2f} ms   peer {theirs:8.2f} ms   ratio {ratios[0]:.2f} {ratios[5]:.2f} {ratios[-1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
