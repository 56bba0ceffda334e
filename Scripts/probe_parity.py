"""How far `martlet probe` is from an independent implementation of the same equations, in every mode.

    python Scripts/probe_parity.py [--martlet ./martlet] [--only gla] [--length 200] [--dtype float32]

The implementation is Tests/MartletCatalogTests/Fixtures/make_mixer_fixtures.py: plain PyTorch in float64, token by token.
Prints max |a - b| / max |b| of the output, of the gradient of the input and of the worst parameter gradient, and ends with
status 1 when one is above the tolerance.
Needs torch and safetensors.
"""

import argparse
import importlib.util
import json
import pathlib
import subprocess
import sys
import tempfile

from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent


def oracle():
    path = ROOT / "Tests/MartletCatalogTests/Fixtures/make_mixer_fixtures.py"
    spec = importlib.util.spec_from_file_location("make_mixer_fixtures", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases(length):
    """id, configuration, padded lengths"""
    common = {"width": 32, "heads": 4, "length": length}
    short = [length, max(1, length // 3)]
    yield "softmax", common | {"causal": True}, None
    yield "softmax", common | {"causal": False}, short
    yield "linear", common | {"causal": True}, None
    yield "linear", common | {"causal": False}, short
    yield "gla", common | {"causal": True}, None
    yield "gla", common | {"causal": True, "convolution": 4, "chunk": 48}, None
    yield "gla", common | {"causal": False}, short
    yield "s4", common | {"causal": True, "state": 16}, None
    yield "s4", common | {"causal": False, "state": 16}, None
    yield "s4d", common | {"causal": True, "state": 16}, None
    yield "s4d", common | {"causal": False, "state": 16, "discretization": "bilinear"}, None


def error(found, expected, mask):
    found, expected = found.double(), expected.double()
    if mask is not None:
        found, expected = found * mask[..., None], expected * mask[..., None]
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--martlet", default=str(ROOT / "martlet"))
    parser.add_argument("--only", help="one method's id")
    parser.add_argument("--length", type=int, default=101)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    make = oracle().make
    worst, failures = 0.0, []
    print(f"{'method':8} {'mode':10} {'y':>9} {'grad_x':>9} {'grad.*':>9}  configuration")
    for number, (id, configuration, lengths) in enumerate(cases(options.length)):
        if options.only not in (None, id):
            continue
        if lengths is not None:
            lengths = (lengths * options.batch)[: options.batch]
        tensors = make(id, configuration, options.batch, options.length, lengths, seed=100 + number)
        expected = {n.removeprefix("expected."): t for n, t in tensors.items() if n.startswith("expected.")}
        inputs = {n: t for n, t in tensors.items() if not n.startswith("expected.")}
        for mode in ["parallel", "recurrent", "reference"]:
            if mode == "recurrent" and not configuration["causal"]:
                continue
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                full = configuration | {"mode": mode, "dtype": options.dtype}
                (folder / "config.json").write_text(json.dumps(full))
                save_file(inputs, folder / "in.safetensors")
                command = [str(pathlib.Path(options.martlet).resolve()), "probe", id, "--config", "config.json", "--in", "in.safetensors", "--out", "out.safetensors"]
                result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
                if result.returncode != 0:
                    sys.exit(f"{' '.join(command)} ended with status {result.returncode}:\n{result.stderr or result.stdout}")
                found = load_file(folder / "out.safetensors")
            if set(found) != set(expected):
                sys.exit(f"{id}: probe gave {sorted(found)}, expected {sorted(expected)}")
            errors = {n: error(found[n], expected[n], tensors.get("mask") if n == "y" else None) for n in expected}
            parameters = max((e, n) for n, e in errors.items() if n.startswith("grad."))
            worst = max(worst, *errors.values())
            for name, e in errors.items():
                if not e <= options.tolerance:
                    failures.append(f"{id}, {mode}: {name} is off by {e:.1e}")
            print(
                f"{id:8} {mode:10} {errors['y']:9.1e} {errors['grad_x']:9.1e} {parameters[0]:9.1e}  "
                f"{json.dumps(configuration)} (worst: {parameters[1]})"
            )
    print(f"worst {worst:.1e}, tolerance {options.tolerance:.0e}")
    for failure in failures:
        print(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
