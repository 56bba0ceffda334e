"""Sequence mixers written down from their papers' equations in plain PyTorch (float64), independent of Martlet's code.

Run it to make the fixtures beside it:  python make_mixer_fixtures.py
Needs torch and safetensors. Each file holds the tensors that `martlet probe` takes (x, mask, grad_y, weight.*) and, under
`expected.`, those it must give; the metadata hold the method's id, its configuration and the modes to be tried.

Attention over all pairs is the weighted mean of its equation; everything that is a recurrence is run as one, token by token.
"""

import json
import math
import pathlib
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.set_default_dtype(torch.float64)


# ---- pieces that several mixers use


def heads_of(x, heads):
    """[B, L, H d] -> [B, H, L, d]"""
    b, l, _ = x.shape
    return x.reshape(b, l, heads, -1).permute(0, 2, 1, 3)


def join(x):
    """[B, H, L, d] -> [B, L, H d]"""
    b, h, l, d = x.shape
    return x.permute(0, 2, 1, 3).reshape(b, l, h * d)


def rotate(x):
    """Su et al. 2021, eq. 34, on the pairs (i, i + d/2); base 10000. x [B, H, L, d]"""
    d = x.shape[-1]
    out = torch.empty_like(x)
    for t in range(x.shape[2]):
        for i in range(d // 2):
            angle = t * 10000.0 ** (-2 * i / d)
            a, b = x[:, :, t, i], x[:, :, t, i + d // 2]
            out[:, :, t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, t, i + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def rms(x, weight, epsilon):
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight


# ---- softmax attention (Vaswani et al. 2017, eq. 1)


def softmax(w, x, mask, c):
    b, l, d = x.shape
    heads = c["heads"]
    shared = c.get("kv_heads", 0) or heads

    def project(name):
        y = x @ w[name + ".weight"].T
        return y + w[name + ".bias"] if c.get("bias") else y

    q, k, v = heads_of(project("query"), heads), heads_of(project("key"), shared), heads_of(project("value"), shared)
    if c.get("qk_norm"):
        q, k = rms(q, w["query_norm.weight"], 1e-6), rms(k, w["key_norm.weight"], 1e-6)
    if c.get("rotary", True):
        q, k = rotate(q), rotate(k)
    rows = []
    for h in range(heads):
        kh, vh = k[:, h * shared // heads], v[:, h * shared // heads]
        columns = []
        for i in range(l):
            last = i if c["causal"] else l - 1
            seen = [j for j in range(last + 1) if c.get("window") is None or abs(i - j) <= c["window"]]
            # [B, seen]
            scores = torch.einsum("bd,bjd->bj", q[:, h, i], kh[:, seen]) / math.sqrt(q.shape[-1])
            weights = scores.exp()
            if mask is not None:
                weights = weights * mask[:, seen]
            total = weights.sum(-1, keepdim=True)
            weights = weights / torch.where(total == 0, torch.ones_like(total), total)
            columns.append(torch.einsum("bj,bjd->bd", weights, vh[:, seen]))
        rows.append(torch.stack(columns, 1))
    o = join(torch.stack(rows, 1)) @ w["output.weight"].T
    return o + w["output.bias"] if c.get("bias") else o


def softmax_shapes(c):
    d, kv = c["width"], c["width"] // c["heads"] * (c.get("kv_heads", 0) or c["heads"])
    shapes = {"query.weight": [d, d], "key.weight": [kv, d], "value.weight": [kv, d], "output.weight": [d, d]}
    if c.get("bias"):
        shapes |= {"query.bias": [d], "key.bias": [kv], "value.bias": [kv], "output.bias": [d]}
    if c.get("qk_norm"):
        shapes |= {"query_norm.weight": [d // c["heads"]], "key_norm.weight": [d // c["heads"]]}
    return shapes


# ---- linear attention (Katharopoulos et al. 2020, eqs. 7 and 16-20), phi(x) = elu(x) + 1


def linear(w, x, mask, c):
    b, l, _ = x.shape
    q, k, v = (heads_of(x @ w[n + ".weight"].T, c["heads"]) for n in ("query", "key", "value"))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    if mask is not None:
        k = k * mask[:, None, :, None]
    s = torch.zeros(b, c["heads"], q.shape[-1], v.shape[-1])
    z = torch.zeros(b, c["heads"], q.shape[-1])
    states = []
    for t in range(l):
        s = s + k[:, :, t, :, None] * v[:, :, t, None, :]
        z = z + k[:, :, t]
        states.append((s, z))
    out = []
    for t in range(l):
        s, z = states[t] if c["causal"] else states[-1]
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], s) / (torch.einsum("bhk,bhk->bh", q[:, :, t], z) + 1e-6)[..., None])
    return join(torch.stack(out, 2)) @ w["output.weight"].T


def linear_shapes(c):
    return {n + ".weight": [c["width"], c["width"]] for n in ("query", "key", "value", "output")}


# ---- gated linear attention (Yang et al. 2023, eq. 3 and section 4.4) and its relatives


def short_convolution(x, weight):
    """y_t = SiLU(sum_j weight[:, K-1-j] x_{t-j})"""
    size = weight.shape[1]
    y = torch.zeros_like(x)
    for j in range(size):
        moved = torch.zeros_like(x)
        moved[:, j:] = x[:, : x.shape[1] - j]
        y = y + moved * weight[:, size - 1 - j]
    return F.silu(y)


def gla(w, x, mask, c):
    b, l, _ = x.shape
    heads, gate = c["heads"], c.get("gate", "per_channel")
    q, k, v = (x @ w[n + ".weight"].T for n in ("query", "key", "value"))
    if c.get("convolution", 0):
        q, k, v = (
            short_convolution(y, w[n + "_convolution.weight"]) for y, n in ((q, "query"), (k, "key"), (v, "value"))
        )
    q, k, v = heads_of(q, heads), heads_of(k, heads), heads_of(v, heads)
    dk = q.shape[-1]
    if gate == "retention":
        q, k = rotate(q), rotate(k)
    tau = c.get("gate_temperature", 16)
    if gate == "per_channel":
        g = (x @ w["gate_in.weight"].T) @ w["gate_out.weight"].T + w["gate_out.bias"]
        alpha = heads_of(torch.sigmoid(g) ** (1 / tau), heads)
    elif gate == "scalar":
        g = x @ w["gate_out.weight"].T + w["gate_out.bias"]  # [B, L, H]
        alpha = (torch.sigmoid(g) ** (1 / tau)).permute(0, 2, 1)[..., None].expand(b, heads, l, dk)
    elif gate == "retention":
        alpha = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(heads)])[None, :, None, None].expand(b, heads, l, dk)
    else:
        alpha = torch.ones(b, heads, l, dk)
    if mask is not None:
        keep = mask[:, None, :, None]
        k = k * keep
        alpha = torch.where(keep > 0, alpha, torch.ones_like(alpha))

    def scan(order):
        s = torch.zeros(b, heads, dk, v.shape[-1])
        out = [None] * l
        for t in order:
            s = alpha[:, :, t, :, None] * s + k[:, :, t, :, None] * v[:, :, t, None, :]
            out[t] = torch.einsum("bhk,bhkv->bhv", q[:, :, t], s) / math.sqrt(dk)
        return torch.stack(out, 2)

    o = scan(range(l))
    if not c["causal"]:
        o = o + scan(reversed(range(l)))
    o = join(rms(o, w["norm.weight"], 1e-5))
    if c.get("output_gate", True):
        o = o * F.silu(x @ w["output_gate.weight"].T)
    return o @ w["output.weight"].T


def gla_shapes(c):
    d, h, kernel = c["width"], c["heads"], c.get("convolution", 0)
    gate = c.get("gate", "per_channel")
    dk, dv = d // 2, d
    shapes = {"query.weight": [dk, d], "key.weight": [dk, d], "value.weight": [dv, d], "norm.weight": [dv // h], "output.weight": [d, dv]}
    if gate == "per_channel":
        rank = c.get("gate_rank", 16)
        shapes |= {"gate_in.weight": [rank, d], "gate_out.weight": [dk, rank], "gate_out.bias": [dk]}
    if gate == "scalar":
        shapes |= {"gate_out.weight": [h, d], "gate_out.bias": [h]}
    if c.get("output_gate", True):
        shapes["output_gate.weight"] = [dv, d]
    if kernel:
        shapes |= {"query_convolution.weight": [dk, kernel], "key_convolution.weight": [dk, kernel], "value_convolution.weight": [dv, kernel]}
    return shapes


# ---- state spaces: the recurrences x <- A x + B u, y = C x + D u of Gu et al. 2021 (eq. 3) and 2022 (eqs. 2-4)


def channels(w, y):
    """GLU(W GELU(y) + b)"""
    z = F.gelu(y) @ w["output.weight"].T + w["output.bias"]
    a, b = z.chunk(2, -1)
    return a * torch.sigmoid(b)


def masked_input(x, mask):
    return x if mask is None else x * mask[..., None]


def of_channels(w, name):
    """A parameter of the systems that the channels share in turn, for every channel."""
    x, channels = w["kernel." + name], w["kernel.log_dt"].shape[0]
    return torch.stack([x[d % x.shape[0]] for d in range(channels)])


def s4d(w, x, mask, c):
    u = masked_input(x, mask)
    delta = w["kernel.log_dt"].exp()[:, None]
    lam = torch.complex(-of_channels(w, "log_A_real").exp(), of_channels(w, "A_imag"))
    b, output = torch.view_as_complex(of_channels(w, "B")), torch.view_as_complex(w["kernel.C"])
    if c.get("discretization", "zoh") == "zoh":
        bar_a = (delta * lam).exp()
        bar_b = (bar_a - 1) / lam * b
    else:
        bar_a = (1 + delta / 2 * lam) / (1 - delta / 2 * lam)
        bar_b = delta * b / (1 - delta / 2 * lam)
    y = u * w["D"]
    for direction in range(output.shape[0]):
        order = range(u.shape[1]) if direction == 0 else reversed(range(u.shape[1]))
        state = torch.zeros(u.shape[0], *bar_a.shape, dtype=torch.complex128)
        out = [None] * u.shape[1]
        for t in order:
            state = bar_a * state + bar_b * u[:, t, :, None]
            out[t] = 2 * (output[direction] * state).sum(-1).real
        y = y + torch.stack(out, 1)
    return channels(w, y)


def closed(z):
    """A half set and its conjugates, over the last axis."""
    return torch.cat([z, z.conj()], -1)


def dense_s4(w):
    """Bilinear discretisation (eq. 3) of the dense A = Lambda - P P* and of B: [D, N, N] and [D, N]."""
    lam = closed(torch.complex(-of_channels(w, "log_A_real").exp(), of_channels(w, "A_imag")))
    b, p = (closed(torch.view_as_complex(of_channels(w, n))) for n in "BP")
    delta = w["kernel.log_dt"].exp()[:, None, None]
    a = torch.diag_embed(lam) - p[..., :, None] * p.conj()[..., None, :]
    eye = torch.eye(a.shape[-1], dtype=torch.complex128)
    inverse = torch.linalg.inv(eye - delta / 2 * a)
    return inverse @ (eye + delta / 2 * a), (inverse * delta @ b[..., None])[..., 0]


def s4(w, x, mask, c):
    """The kernel K_l = C A^l B by explicit powers of the dense discretised matrix, C = C~ (I - A^L)^-1 (lemma C.3)."""
    u = masked_input(x, mask)
    length = u.shape[1]
    bar_a, bar_b = dense_s4(w)
    tilde = closed(torch.view_as_complex(w["kernel.C"]))
    eye = torch.eye(bar_a.shape[-1], dtype=torch.complex128)
    power = eye.expand_as(bar_a)
    columns = []  # A^l B
    for _ in range(c["length"]):
        columns.append((power @ bar_b[..., None])[..., 0])
        power = bar_a @ power
    columns = torch.stack(columns, -1)  # [D, N, L]
    output = (tilde[..., None, :] @ torch.linalg.inv(eye - power))[..., 0, :]
    kernels = torch.einsum("sdn,dnl->sdl", output, columns).real
    y = u * w["D"]
    for direction in range(kernels.shape[0]):
        v = u if direction == 0 else u.flip(1)
        out = []
        for t in range(length):
            out.append(sum(kernels[direction, :, m] * v[:, t - m] for m in range(t + 1)))
        out = torch.stack(out, 1)
        y = y + (out if direction == 0 else out.flip(1))
    return channels(w, y)


def legs(n):
    """HiPPO-LegS as diagonal plus low rank: Lambda, P, B of the half with negative frequencies."""
    index = torch.arange(n, dtype=torch.float64)
    root = (2 * index + 1).sqrt()
    a = -torch.tril(root[:, None] * root[None, :], -1) - torch.diag(index + 1)
    p = (index + 0.5).sqrt()
    skew = a + p[:, None] * p[None, :] + 0.5 * torch.eye(n)
    omega, v = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    half = omega < 0
    return torch.complex(torch.full([n // 2], -0.5), omega[half]), (v.conj().T @ p.to(v.dtype))[half], (v.conj().T @ root.to(v.dtype))[half]


def state_weights(id, c, generator):
    d, n = c["width"], c["state"]
    systems = c.get("n_ssm") or d
    directions = 1 if c["causal"] else 2

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    lam, p, b = legs(n)
    if id == "s4d":
        lam, b = torch.complex(torch.full([n // 2], -0.5), math.pi * torch.arange(n // 2)), torch.ones(n // 2, dtype=torch.complex128)

    def spread(z):  # every channel slightly different, so that the channels can't be mistaken for each other
        return torch.view_as_real(z.expand(systems, -1).contiguous()) * (1 + 0.1 * normal(systems, n // 2, 2))

    w = {
        "D": normal(d),
        "kernel.log_dt": math.log(0.001) + (math.log(0.1) - math.log(0.001)) * torch.rand(d, generator=generator),
        "kernel.log_A_real": (-lam.real).log() + 0.1 * normal(systems, n // 2),
        "kernel.A_imag": lam.imag * (1 + 0.1 * normal(systems, n // 2)),
        "kernel.B": spread(b),
        "kernel.C": normal(directions, d, n // 2, 2) * math.sqrt(0.5),
        "output.weight": normal(2 * d, d) / math.sqrt(d),
        "output.bias": 0.1 * normal(2 * d),
    }
    if id == "s4":
        w["kernel.P"] = spread(p)
        # What is stored is C~ = C (I - A^L), as S4 makes it from a random C.
        bar_a, _ = dense_s4(w)
        full = closed(torch.view_as_complex(w["kernel.C"]))
        tilde = full - (full[..., None, :] @ torch.linalg.matrix_power(bar_a, c["length"]))[..., 0, :]
        w["kernel.C"] = torch.view_as_real(tilde[..., : n // 2].contiguous())
    return w


# ---- fixtures

MIXERS = {"softmax": softmax, "linear": linear, "gla": gla, "s4": s4, "s4d": s4d}
SHAPES = {"softmax": softmax_shapes, "linear": linear_shapes, "gla": gla_shapes}


def make(id, configuration, batch, length, lengths=None, seed=0):
    """Inputs and expected outputs of one case. The inputs are numbers that float32 can hold."""
    c = dict(configuration)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    if id in SHAPES:
        w = {}
        for name, shape in SHAPES[id](c).items():
            w[name] = normal(*shape) / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2 * normal(*shape)
            if "norm" in name:
                w[name] = w[name] + 1
    else:
        w = state_weights(id, c, generator)
    w = {name: value.float().double().requires_grad_() for name, value in w.items()}
    x = normal(batch, length, c["width"]).float().double().requires_grad_()
    grad_y = normal(batch, length, c["width"]).float().double()
    mask = None
    tensors = {"x": x, "grad_y": grad_y} | {"weight." + n: v for n, v in w.items()}
    if lengths is not None:
        mask = torch.tensor([[float(t < n) for t in range(length)] for n in lengths])
        tensors["mask"] = mask > 0
        # What stands at padded positions of the output is nobody's business.
        grad_y *= mask[..., None]
    y = MIXERS[id](w, x, mask, c)
    names = list(w)
    gradients = torch.autograd.grad(y, [x] + [w[n] for n in names], grad_y)
    expected = {"y": y, "grad_x": gradients[0]} | {"grad." + n: g for n, g in zip(names, gradients[1:])}
    if mask is not None:
        expected["y"] = y * mask[..., None]
    tensors |= {"expected." + n: v for n, v in expected.items()}
    return {n: (v if v.dtype == torch.bool else v.detach().float()).contiguous() for n, v in tensors.items()}


BOTH = ["parallel", "recurrent", "reference"]
PARALLEL = ["parallel", "reference"]

# name: (id, configuration, batch, length, lengths of the padded sequences, modes)
CASES = {
    "softmax_causal": ("softmax", {"width": 16, "heads": 2, "causal": True}, 2, 37, None, BOTH),
    "softmax_bidirectional": (
        "softmax",
        {"width": 8, "heads": 2, "causal": False, "rotary": False, "bias": True, "qk_norm": True},
        2, 21, None, PARALLEL,
    ),
    "softmax_grouped": ("softmax", {"width": 16, "heads": 4, "kv_heads": 2, "causal": True}, 1, 19, None, BOTH),
    "softmax_window": ("softmax", {"width": 8, "heads": 2, "causal": True, "window": 5, "rotary": False}, 1, 41, None, BOTH),
    "softmax_window_bidirectional": ("softmax", {"width": 8, "heads": 2, "causal": False, "window": 3}, 1, 23, None, PARALLEL),
    "softmax_masked": ("softmax", {"width": 8, "heads": 2, "causal": False}, 2, 21, [21, 9], PARALLEL),
    "softmax_causal_masked": ("softmax", {"width": 8, "heads": 2, "causal": True}, 2, 18, [5, 18], PARALLEL),
    "linear_causal": ("linear", {"width": 16, "heads": 2, "causal": True}, 2, 39, None, BOTH),
    "linear_bidirectional": ("linear", {"width": 8, "heads": 2, "causal": False}, 2, 26, None, PARALLEL),
    "linear_masked": ("linear", {"width": 8, "heads": 2, "causal": False}, 2, 22, [22, 7], PARALLEL),
    "linear_causal_masked": ("linear", {"width": 8, "heads": 1, "causal": True}, 2, 17, [3, 17], PARALLEL),
    "gla_per_channel": ("gla", {"width": 16, "heads": 2, "causal": True, "chunk": 32, "gate_temperature": 2.0}, 1, 77, None, BOTH),
    "gla_convolution": ("gla", {"width": 16, "heads": 1, "causal": True, "chunk": 16, "convolution": 4}, 1, 43, None, BOTH),
    "gla_no_gate": ("gla", {"width": 8, "heads": 2, "causal": True, "gate": "none", "output_gate": False}, 2, 40, None, BOTH),
    "gla_retention": ("gla", {"width": 16, "heads": 2, "causal": True, "gate": "retention", "chunk": 16}, 1, 39, None, BOTH),
    "gla_scalar": ("gla", {"width": 8, "heads": 2, "causal": True, "gate": "scalar", "chunk": 8}, 2, 29, None, BOTH),
    "gla_masked": ("gla", {"width": 8, "heads": 2, "causal": False, "chunk": 16, "gate_temperature": 1.0}, 2, 37, [37, 14], PARALLEL),
    "s4d_zoh": ("s4d", {"width": 8, "causal": True, "state": 16}, 2, 50, None, BOTH),
    "s4d_bilinear": ("s4d", {"width": 8, "causal": True, "state": 16, "discretization": "bilinear"}, 2, 33, None, BOTH),
    "s4d_bidirectional": ("s4d", {"width": 8, "causal": False, "state": 8}, 2, 31, [31, 12], PARALLEL),
    "s4_even": ("s4", {"width": 6, "causal": True, "state": 8, "length": 32}, 2, 32, None, BOTH),
    "s4_odd": ("s4", {"width": 6, "causal": True, "state": 16, "length": 33}, 1, 33, None, BOTH),
    "s4_shorter": ("s4", {"width": 4, "causal": True, "state": 8, "length": 48}, 2, 27, None, BOTH),
    "s4_bidirectional": ("s4", {"width": 6, "causal": False, "state": 8, "length": 24}, 2, 24, None, PARALLEL),
    "s4d_shared": ("s4d", {"width": 6, "causal": True, "state": 8, "n_ssm": 2}, 1, 30, None, BOTH),
    "s4_shared": ("s4", {"width": 6, "causal": True, "state": 8, "n_ssm": 3, "length": 26}, 1, 26, None, BOTH),
}


def folder_given():
    """Where fixtures go: the folder that the command names, or this one."""
    return pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent


def save(name, id, c, modes, tensors, **metadata):
    metadata |= {"id": id, "configuration": json.dumps(c), "modes": ",".join(modes)}
    save_file(tensors, folder_given() / f"mixer_{name}.safetensors", metadata=metadata)
    print(f"{name}: {sum(v.numel() * v.element_size() for v in tensors.values()) / 1000:.1f} kB")


def save_all(id, cases, make, first_seed=0):
    """One fixture a case, (configuration, batch, length, lengths, modes, further arguments of make ...), each with a seed of its own."""
    for seed, (name, (c, batch, length, lengths, modes, *further)) in enumerate(cases.items(), first_seed):
        save(f"{id}_{name}", id, c, modes, make(c, batch, length, lengths, seed, *further))


def main():
    for seed, (name, (id, c, batch, length, lengths, modes)) in enumerate(CASES.items()):
        save(name, id, c, modes, make(id, c, batch, length, lengths, seed))


if __name__ == "__main__":
    main()
