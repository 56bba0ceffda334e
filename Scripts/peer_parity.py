"""Checks that the benchmarks' PyTorch layers compute what Martlet's mixers compute, on the same weights.

Usage: peer_parity.py MARTLET [NAME ...]       with the python that runs the peers; MARTLET is the built command.
Prints the worst relative error of the output and of every gradient, exits 1 above 1e-4 (both sides round in float32).
"""

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

PEERS = pathlib.Path(__file__).resolve().parent.parent / "Benchmarks" / "peers"
# A mixer's catalog id and the options that make it the mixer, where the id is another mixer's or the defaults differ.
PROBES = {
    "window": ("softmax", {"window": 64}), "retention": ("gla", {"gate": "retention"}), "scalar_gate": ("gla", {"gate": "scalar"}),
    "selective_s4": ("selective-s4", {"causal": False}), "lolcats": ("lolcats", {"length": None}), "block": (None, {}), "dlr": (None, {}),
    "norm_attention": ("transnormer", {"layer": "norm"}), "diagonal_attention": ("transnormer", {"layer": "diagonal"}),
}
FORWARD_ONLY = {"lolcats"}  # its probe gives other things than gradients
# Where a peer calls a tensor something else than Martlet does: texts replaced in its names.
CONVOLUTIONS = {f"convolutions.{i}": f"{name}_convolution" for i, name in enumerate(("query", "key", "value"))}
NAMES = {
    "atlas": CONVOLUTIONS | {"coefficients": "features.log_coefficients", "window_gate": "window"},
    "deltanet": CONVOLUTIONS,
    "lmu": {"input.": "W_u.", "hidden.": "W_h."},
    "mamba": {"input.": "in_proj.", "convolution.": "conv1d.", "selection.": "x_proj.", "step.": "dt_proj.", "log_a": "A_log",
              "skip": "D", "output.": "out_proj."},
    "nprf": {"bias": "rpe.weight", "directions": "features"},
    "sgconv": {"skip": "D", "norm": "kernel.norm"}, "lolcats": {"query_map": "query_map.weight", "key_map": "key_map.weight"},
}
WIDTH, HEADS, LENGTH = 64, 4, 256


def layer(name):
    torch.manual_seed(1)
    return importlib.import_module("mixers." + name).layer(WIDTH, HEADS, LENGTH).eval()


def renamed(name, tensors):
    """Martlet's names of a peer's parameters and buffers."""
    result = {}
    for key, value in tensors.items():
        for text, replacement in NAMES.get(name, {}).items():
            key = key.replace(text, replacement)
        if name == "nprf" and "qkv." in key:
            result |= {key.replace("qkv", part): x for part, x in zip(("query", "key", "value"), value.chunk(3))}
        elif key.endswith("_convolution.weight"):  # one row a channel
            result[key] = value.squeeze(1)
        elif key.startswith("kernels."):  # SGConv's, one a scale
            result.setdefault("kernel.weight", []).append(value)
        else:
            result[key] = value.flatten(1) if value.shape[2:] == (1, 1) else value  # convolutions of one pixel
    if "kernel.weight" in result and isinstance(result["kernel.weight"], list):
        result["kernel.weight"] = torch.stack(result["kernel.weight"], 1)
    return result


def errors(martlet, name, folder):
    """Relative errors by tensor; None for what has no catalog entry."""
    id, options = PROBES.get(name, (name, {}))
    if id is None:
        return None
    peer = layer(name)
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    grad_y = torch.randn(2, LENGTH, WIDTH)
    parameters = {n: p for n, p in peer.named_parameters() if p.requires_grad}
    y = peer(x)
    gradients = torch.autograd.grad(y, [x, *parameters.values()], grad_y)
    expected = {"y": y, "grad_x": gradients[0]}
    expected |= {"grad." + n: g for n, g in renamed(name, dict(zip(parameters, gradients[1:]))).items()}
    if name in FORWARD_ONLY:
        expected = {"y": y}
    tensors = {"x": x} | ({} if name in FORWARD_ONLY else {"grad_y": grad_y}) | {"weight." + n: v for n, v in renamed(name, peer.state_dict()).items()}
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / "in.safetensors")
    (folder / "c.json").write_text(json.dumps({k: v for k, v in ({"heads": HEADS, "length": LENGTH} | options).items() if v is not None}))
    subprocess.run([martlet, "probe", id, "--config", str(folder / "c.json"), "--in", str(folder / "in.safetensors"),
                    "--out", str(folder / "out.safetensors")], check=True, stdout=subprocess.DEVNULL)
    found = load_file(folder / "out.safetensors")
    if not set(found) >= set(expected):
        raise SystemExit(f"{name}: Martlet gives no {sorted(set(expected) - set(found))}")
    return {n: ((found[n] - e).abs().max() / e.abs().max().clamp(min=1e-12)).item() for n, e in expected.items()}


def main():
    sys.path.insert(0, str(PEERS))
    names = sys.argv[2:] or sorted(p.stem for p in (PEERS / "mixers").glob("[a-z]*.py"))
    bad = False
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = errors(sys.argv[1], name, pathlib.Path(folder))
        if found is None:
            print(f"{name:14} has no catalog entry that could be probed")
            continue
        worst = max(found, key=found.get)
        bad = bad or not found[worst] <= 1e-4
        print(f"{name:14} y {found['y']:.1e}   worst {worst} {found[worst]:.1e}")
    sys.exit(1 if bad else 0)


main()
