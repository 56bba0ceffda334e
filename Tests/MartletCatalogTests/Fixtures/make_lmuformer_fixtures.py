"""LMUFormer and its spiking form written down from the paper's equations in plain PyTorch (float64), independent of Martlet's code.

Run it to make the fixtures beside it:  python make_lmuformer_fixtures.py
Each file holds the tensors that `martlet probe lmuformer` takes (x, mask, grad_y, weight.*) and, under `expected.`, those it must give;
the metadata hold the configuration and the modes. Convolutions, memories and neurons go position by position.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file

from make_lmu_fixtures import held_system

torch.set_default_dtype(torch.float64)
MARGIN = 3e-5  # no membrane comes closer to its threshold: rounding can't make or unmake a spike


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(context, z):
        context.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(context, gradient):
        (z,) = context.saved_tensors
        s = 1 / (1 + (-4 * z).exp())
        return gradient * 4 * s * (1 - s)


class Model:
    def __init__(self, w, c, mask, training):
        self.w, self.c, self.mask, self.training, self.margin = w, c, mask, training, 1.0

    def norm(self, name, x):
        """[B, L, D]; statistics of real frames, variance without Bessel's correction."""
        if self.training:
            rows = x.reshape(-1, x.shape[-1]) if self.mask is None else x[self.mask > 0]
            mean, variance = rows.mean(0), rows.var(0, unbiased=False)
        else:
            mean, variance = self.w[name + ".running_mean"], self.w[name + ".running_var"]
        y = (x - mean) / (variance + 1e-5).sqrt() * self.w[name + ".weight"] + self.w[name + ".bias"]
        return y if self.mask is None else y * self.mask[..., None]

    def spikes(self, x, threshold=1.0):
        v, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = v + (x[:, t] - v) / 2
            self.margin = min(self.margin, (h - threshold).abs().min().item())
            s = Surrogate.apply(h - threshold)
            v = h * (1 - s.detach())
            out.append(s)
        return torch.stack(out, 1)

    def convolution(self, name, x):
        w = self.w[name + ".weight"]
        if self.mask is not None:
            x = x * self.mask[..., None]
        out = []
        for t in range(x.shape[1]):
            y = 0
            for k in range(3):
                if 0 <= t + k - 1 < x.shape[1]:
                    y = y + x[:, t + k - 1] @ w[:, :, k].T
            out.append(y)
        return torch.stack(out, 1)

    def linear(self, name, x):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def lmu(self, p, x):
        c = self.c
        A, B = held_system(c["memory"], c["window"])
        u = self.linear(p + "W_u", x)
        u = self.spikes(self.norm(p + "bn_u", u)) if c["spiking"] else u.clamp_min(0)
        m, states = torch.zeros(x.shape[0], c["memory"]), []
        for t in range(x.shape[1]):
            m = m @ A.T + u[:, t] * B
            states.append(m)
        m = torch.stack(states, 1)
        if c["spiking"]:
            m = self.spikes(self.norm(p + "bn_m", m))
        h = self.linear(p + "W_h", torch.cat([m, x], -1))
        return self.spikes(self.norm(p + "bn_h", h)) if c["spiking"] else h.clamp_min(0)

    def __call__(self, x):
        c, spiking = self.c, self.c["spiking"]
        e = x
        for i in range(c["convolutions"]):
            e = self.convolution(f"patch_embed.convolutions.{i}", e)
            if not spiking:
                e = self.norm(f"patch_embed.norms.{i}", e.clamp_min(0))
            elif i < c["convolutions"] - 1:
                e = self.spikes(self.norm(f"patch_embed.norms.{i}", e))
        branch = self.spikes(self.norm(f"patch_embed.norms.{c['convolutions'] - 1}", e)) if spiking else e
        e = e + self.convolution("patch_embed.residual", branch)
        for i in range(c["layers"]):
            p = f"block.{i}."
            read = self.spikes(self.norm(p + "attn.prev_bn", e), 0.5) if spiking else e
            e = e + self.norm(p + "attn.proj_bn", self.linear(p + "attn.proj_conv", self.lmu(p + "attn.lmu.", read)))
            if spiking:
                h = self.linear(p + "mlp.fc1_conv", self.spikes(self.norm(p + "mlp.fc1_bn", e)))
                e = e + self.linear(p + "mlp.fc2_conv", self.spikes(self.norm(p + "mlp.fc2_bn", h)))
            else:
                h = self.norm(p + "mlp.fc1_bn", self.linear(p + "mlp.fc1_conv", e))
                h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
                e = e + self.norm(p + "mlp.fc2_bn", self.linear(p + "mlp.fc2_conv", h)).clamp_min(0)
        if spiking:
            e = self.spikes(self.norm("head_bn", e))
        logits = self.linear("head", e)
        if self.mask is None:
            return logits.mean(1)
        return (logits * self.mask[..., None]).sum(1) / self.mask.sum(1, keepdim=True)


def shapes(c):
    d, n, hidden, spiking = c["width"], c["memory"], c["mixer_ratio"] * c["width"], c["spiking"]
    result = {}
    norms = {}
    for i in range(c["convolutions"]):
        result[f"patch_embed.convolutions.{i}.weight"] = [d, d if i else c["channels"], 3]
        norms[f"patch_embed.norms.{i}"] = d
    result["patch_embed.residual.weight"] = [d, d, 3]
    for i in range(c["layers"]):
        p = f"block.{i}."
        maps = {"attn.lmu.W_u": [1, d], "attn.lmu.W_h": [d, n + d], "attn.proj_conv": [d, d], "mlp.fc1_conv": [hidden, d], "mlp.fc2_conv": [d, hidden]}
        for name, shape in maps.items():
            result[p + name + ".weight"], result[p + name + ".bias"] = shape, shape[:1]
        norms[p + "attn.proj_bn"] = d
        norms[p + "mlp.fc1_bn"], norms[p + "mlp.fc2_bn"] = (d, hidden) if spiking else (hidden, d)
        if spiking:
            norms |= {p + "attn.prev_bn": d, p + "attn.lmu.bn_u": 1, p + "attn.lmu.bn_m": n, p + "attn.lmu.bn_h": d}
    if spiking:
        norms["head_bn"] = d
    result["head.weight"], result["head.bias"] = [c["classes"], d], [c["classes"]]
    for name, width in norms.items():
        for part in ("weight", "bias", "running_mean", "running_var"):
            result[f"{name}.{part}"] = [width]
    return result


def make(c, batch, length, lengths, training, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    w = {}
    for name, shape in shapes(c).items():
        if len(shape) > 1:
            w[name] = 1.5 * normal(*shape) / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("running_var"):
            w[name] = 0.5 + torch.rand(*shape, generator=generator)
        elif name.endswith("weight"):
            w[name] = 1.5 + 0.2 * normal(*shape)
        else:
            w[name] = 0.2 * normal(*shape)
    w = {name: value.float().double() for name, value in w.items()}
    buffers = [name for name in w if "running" in name]
    parameters = [name for name in w if name not in buffers]
    for name in parameters:
        w[name].requires_grad_()
    x = normal(batch, length, c["channels"]).float().double()
    tensors = {}
    mask = None
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
    x.requires_grad_()
    model = Model(w, c, mask, training)
    y = model(x)
    if model.margin < MARGIN:
        return None
    grad_y = normal(*y.shape).float().double()
    gradients = torch.autograd.grad(y, [x] + [w[n] for n in parameters], grad_y)
    expected = {"y": y, "grad_x": gradients[0]} | {"grad." + n: g for n, g in zip(parameters, gradients[1:])}
    tensors |= {"x": x, "grad_y": grad_y} | {"weight." + n: v for n, v in w.items()} | {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


def configuration(spiking, **changes):
    c = {"channels": 3, "width": 6, "layers": 1, "memory": 8 if spiking else 5, "window": 12, "convolutions": 3, "mixer_ratio": 2, "classes": 4, "spiking": spiking}
    return c | changes


# name: (configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "plain": (configuration(False, layers=2), 2, 14, None, ["parallel", "reference", "stream"]),
    "plain_masked": (configuration(False, convolutions=4), 2, 13, [13, 6], ["parallel", "reference"]),
    "plain_training": (configuration(False), 3, 12, [12, 5, 9], ["training"]),
    "spiking": (configuration(True), 2, 19, None, ["parallel", "reference", "stream"]),
    "spiking_masked": (configuration(True), 2, 11, [4, 11], ["parallel", "reference"]),
    "spiking_training": (configuration(True, width=4, memory=4), 3, 10, None, ["training"]),
}


def main(folder):
    for number, (name, (c, batch, length, lengths, modes)) in enumerate(CASES.items()):
        for seed in range(100 * number, 100 * number + 100):
            tensors = make(c, batch, length, lengths, "training" in modes, seed)
            if tensors is not None:
                break
        save_file(tensors, folder / f"lmuformer_{name}.safetensors", metadata={"configuration": json.dumps(c), "modes": ",".join(modes)})
        print(f"{name}: seed {seed}, {sum(v.numel() * v.element_size() for v in tensors.values()) / 1000:.1f} kB")


if __name__ == "__main__":
    main(pathlib.Path(__file__).resolve().parent)
