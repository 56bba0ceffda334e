"""Checks that the benchmarks' PyTorch layers compute what Martlet's mixers compute, on the same weights.

Usage: peer_parity.py MARTLET [NAME ...]       with the python that runs the peers; MARTLET is the built command.
Prints the worst relative error of the output and of every gradient, exits 1 above 1e-4 (both sides round in float32).
"""

import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file

PEERS = pathlib.Path(__file__).resolve().parent.parent / "Benchmarks" / "peers"
# A mixer's catalog id and the options that make it the mixer, where the id is another mixer's.
PROBES = {
    "window": ("softmax", {"window": 64}), "retention": ("gla", {"gate": "retention"}), "scalar_gate": ("gla", {"gate": "scalar"}),
    "selective_s4": ("selective-s4", {"causal": False}),
}
WIDTH, HEADS, LENGTH = 64, 4, 256


def layer(name):
    sys.path.insert(0, str(PEERS))
    spec = importlib.util.spec_from_file_location("mixers_" + name, PEERS / "mixers" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(1)
    return module.layer(WIDTH, HEADS, LENGTH).eval()


def errors(martlet, name, folder):
    ours = layer(name)
    x = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    grad_y = torch.randn(2, LENGTH, WIDTH)
    parameters = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    y = ours(x)
    gradients = torch.autograd.grad(y, [x, *parameters.values()], grad_y)
    expected = {"y": y, "grad_x": gradients[0]} | {"grad." + n: g for n, g in zip(parameters, gradients[1:])}
    tensors = {"x": x, "grad_y": grad_y} | {"weight." + n: v for n, v in ours.state_dict().items()}
    save_file({n: t.detach().contiguous() for n, t in tensors.items()}, folder / "in.safetensors")
    id, options = PROBES.get(name, (name, {}))
    (folder / "c.json").write_text(json.dumps({"heads": HEADS, "length": LENGTH} | options))
    if subprocess.run([martlet, "describe", id], capture_output=True).returncode:
        return None
    subprocess.run([martlet, "probe", id, "--config", str(folder / "c.json"), "--in", str(folder / "in.safetensors"),
                    "--out", str(folder / "out.safetensors")], check=True, stdout=subprocess.DEVNULL)
    found = load_file(folder / "out.safetensors")
    if set(found) != set(expected):
        raise SystemExit(f"{name}: tensors {sorted(set(found) ^ set(expected))} are on one side only")
    return {n: ((found[n] - e).abs().max() / e.abs().max().clamp(min=1e-12)).item() for n, e in expected.items()}


def main():
    names = sys.argv[2:] or sorted(p.stem for p in (PEERS / "mixers").glob("*.py"))
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
