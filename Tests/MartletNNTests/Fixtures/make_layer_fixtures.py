"""Writes layers.safetensors: inputs, parameters, outputs and gradients of PyTorch's layers, and rotary frequencies, ALiBi
slopes and T5 buckets of transformers.

    python make_layer_fixtures.py        (torch, transformers, safetensors; CPU)

Every layer has <name>.x (or .ids), its parameters <name>.<key>, the output <name>.y, the gradient of the output
<name>.grad_y, and what follows from it: <name>.grad_x and <name>.grad.<key>.
"""

import os

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

torch.manual_seed(20)
tensors = {}


def record(name, x, parameters, function, key="x"):
    """Runs the function on leaves and keeps everything."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in parameters.items()}
    x = x.detach().clone()
    if x.is_floating_point():
        x.requires_grad_()
    y = function(x, leaves)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    tensors[f"{name}.{key}"] = x.detach()
    for k, v in leaves.items():
        tensors[f"{name}.{k}"] = v.detach()
        tensors[f"{name}.grad.{k}"] = v.grad
    if x.grad is not None:
        tensors[f"{name}.grad_x"] = x.grad
    tensors[f"{name}.y"] = y.detach()
    tensors[f"{name}.grad_y"] = grad_y


def affine(n):
    return {"weight": 1 + 0.3 * torch.randn(n), "bias": 0.3 * torch.randn(n)}


record("linear", torch.randn(3, 5, 12), {"weight": torch.randn(20, 12), "bias": torch.randn(20)}, lambda x, p: F.linear(x, p["weight"], p["bias"]))
record("layer_norm", 2 * torch.randn(3, 5, 12) + 1, affine(12), lambda x, p: F.layer_norm(x, [12], p["weight"], p["bias"], 1e-5))
record("rms_norm", 2 * torch.randn(3, 5, 12) + 1, {"weight": 1 + 0.3 * torch.randn(12)}, lambda x, p: F.rms_norm(x, [12], p["weight"], 1e-6))
record("group_norm", torch.randn(2, 6, 7), affine(6), lambda x, p: F.group_norm(x, 3, p["weight"], p["bias"], 1e-5))

mean, variance = torch.zeros(6), torch.ones(6)
record(
    "batch_norm", torch.randn(4, 5, 6) + 0.5, affine(6),
    lambda x, p: F.batch_norm(x.transpose(1, 2), mean, variance, p["weight"], p["bias"], True, 0.1, 1e-5).transpose(1, 2))
tensors["batch_norm.mean_after"], tensors["batch_norm.var_after"] = mean, variance

record(
    "conv1d", torch.randn(2, 4, 15), {"weight": torch.randn(6, 2, 3), "bias": torch.randn(6)},
    lambda x, p: F.conv1d(x, p["weight"], p["bias"], stride=2, padding=2, dilation=2, groups=2))
record(
    "conv2d_depthwise", torch.randn(2, 4, 8, 9), {"weight": torch.randn(4, 1, 3, 3), "bias": torch.randn(4)},
    lambda x, p: F.conv2d(x, p["weight"], p["bias"], stride=1, padding=1, groups=4))
record(
    "conv2d", torch.randn(2, 3, 8, 9), {"weight": torch.randn(5, 3, 3, 3), "bias": torch.randn(5)},
    lambda x, p: F.conv2d(x, p["weight"], p["bias"], stride=2, padding=1))
record("embedding", torch.tensor([[3, 0, 3], [6, 1, 2]]), {"weight": torch.randn(7, 4)}, lambda x, p: F.embedding(x, p["weight"]), key="ids")

targets = torch.randint(0, 11, (4, 6))
targets[0, 2] = targets[3, 5] = -100
tensors["targets"] = targets
logits = 3 * torch.randn(4, 6, 11)
for name, smoothing in [("cross_entropy", 0.0), ("cross_entropy_smoothed", 0.1)]:
    record(name, logits, {}, lambda x, p: F.cross_entropy(x.reshape(-1, 11), targets.reshape(-1), label_smoothing=smoothing))
other = torch.rand(4, 6)
tensors["loss_target"] = other
record("binary", 4 * torch.randn(4, 6), {}, lambda x, p: F.binary_cross_entropy_with_logits(x, other))
record("huber", 2 * torch.randn(4, 6), {}, lambda x, p: F.huber_loss(x, other, delta=0.7))
record("mse", torch.randn(4, 6), {}, lambda x, p: F.mse_loss(x, other))
record("mae", torch.randn(4, 6), {}, lambda x, p: F.l1_loss(x, other))
log_target = torch.randn(4, 6).log_softmax(-1)
tensors["log_target"] = log_target
record("kl", torch.randn(4, 6).log_softmax(-1), {}, lambda x, p: F.kl_div(x, log_target, reduction="batchmean", log_target=True))

for name in ["relu", "gelu", "geluTanh", "silu", "sigmoid", "tanh", "elu", "softplus"]:
    function = {"geluTanh": lambda x: F.gelu(x, approximate="tanh")}.get(name) or getattr(F, name, None) or getattr(torch, name)
    record("activation." + name, 3 * torch.randn(4, 7), {}, lambda x, p: function(x))


def rope(name, scaling, length=None):
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=4, head_dim=64, max_position_embeddings=2048,
        rope_parameters={"rope_theta": 10000.0, **scaling})
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, "cpu", seq_len=length)
    tensors[f"rope.{name}"] = frequencies.float()
    tensors[f"rope.{name}.magnitude"] = torch.tensor([float(factor)])


rope("linear", {"rope_type": "linear", "factor": 4.0})
rope("dynamic", {"rope_type": "dynamic", "factor": 3.0}, length=4096)
rope("yarn", {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 2048})
rope(
    "llama3",
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024})

for heads in [8, 12]:
    # The column of distance 1 less that of distance 0 in a mask of ones: the slope itself.
    alibi = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32).reshape(heads, 2)
    tensors[f"alibi.{heads}"] = (alibi[:, 1] - alibi[:, 0]).clone()

distance = torch.arange(-400, 401)
for both in [True, False]:
    tensors[f"t5.{'bidirectional' if both else 'causal'}"] = T5Attention._relative_position_bucket(
        distance, bidirectional=both, num_buckets=32, max_distance=128)

save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(os.path.dirname(os.path.abspath(__file__)), "layers.safetensors"))
print(f"{len(tensors)} tensors, {sum(v.numel() * v.element_size() for v in tensors.values())} bytes")
