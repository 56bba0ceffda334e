"""Writes optimizers.json and schedules.json: what PyTorch, or the papers' equations in plain PyTorch, compute.

    python make_optimizer_fixtures.py

Each case of optimizers.json: the options, the parameters before the first step, the gradients of every step, the parameters after
every step. float32 throughout. The first steps of `late` have no gradient for the parameter `bias`.
"""

import json
import pathlib

import torch

HERE = pathlib.Path(__file__).parent
SHAPES = {"weight": (5, 7), "stack": (2, 3, 4), "bias": (6,)}
STEPS = 10


def inputs(seed, missing):
    generator = torch.Generator().manual_seed(seed)
    start = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    gradients = []
    for step in range(STEPS):
        scale = 0.3 + 0.5 * step  # so that second moments and clipping matter
        gradients.append({name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()})
        if step < missing:
            del gradients[-1]["bias"]
    return start, gradients


def run_torch(make, start, gradients):
    parameters = {name: value.clone().requires_grad_() for name, value in start.items()}
    optimizer = make(list(parameters.values()))
    after = []
    for step in gradients:
        for name, parameter in parameters.items():
            parameter.grad = step[name].clone() if name in step else None
        optimizer.step()
        after.append({name: parameter.detach().clone() for name, parameter in parameters.items()})
    return after


def run_rule(rule, start, gradients):
    """`rule(x, g, t, memory)` returns the new x; t counts the parameter's own updates from 1."""
    values = {name: value.clone() for name, value in start.items()}
    memory = {name: {} for name in start}
    count = dict.fromkeys(start, 0)
    after = []
    for step in gradients:
        for name, gradient in step.items():
            count[name] += 1
            values[name] = rule(values[name], gradient, count[name], memory[name])
        after.append({name: value.clone() for name, value in values.items()})
    return after


def lion(lr, beta1, beta2, decay):
    # Chen et al. 2023, algorithm 2.
    def rule(x, g, t, memory):
        m = memory.get("m", torch.zeros_like(x))
        c = beta1 * m + (1 - beta1) * g
        memory["m"] = beta2 * m + (1 - beta2) * g
        return x - lr * (torch.sign(c) + decay * x)

    return rule


def lamb(lr, beta1, beta2, epsilon, decay, low=0.0, high=float("inf")):
    # You et al. 2020, algorithm 2.
    def rule(x, g, t, memory):
        m = beta1 * memory.get("m", torch.zeros_like(x)) + (1 - beta1) * g
        v = beta2 * memory.get("v", torch.zeros_like(x)) + (1 - beta2) * g * g
        memory["m"], memory["v"] = m, v
        u = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + epsilon) + decay * x
        norm, length = min(max(float(x.norm()), low), high), float(u.norm())
        return x - lr * (norm / length if norm > 0 and length > 0 else 1.0) * u

    return rule


def adafactor(beta1=None, epsilon1=1e-30, epsilon2=1e-3, d=1.0, absolute=None):
    # Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors), with row and column sums as the paper has them.
    def rms(x):
        return float(x.pow(2).mean().sqrt())

    def rule(x, g, t, memory):
        beta2 = 1 - t**-0.8
        square = g * g + epsilon1
        if x.dim() >= 2:
            r = beta2 * memory.get("r", 0) + (1 - beta2) * square.sum(-1)
            c = beta2 * memory.get("c", 0) + (1 - beta2) * square.sum(-2)
            memory["r"], memory["c"] = r, c
            v = r[..., :, None] * c[..., None, :] / r.sum(-1)[..., None, None]
        else:
            v = beta2 * memory.get("v", 0) + (1 - beta2) * square
            memory["v"] = v
        u = g / v.sqrt()
        u = u / max(1.0, rms(u) / d)
        rho = min(1e-2, t**-0.5) * max(epsilon2, rms(x)) if absolute is None else absolute
        change = rho * u
        if beta1 is not None:
            memory["m"] = change = beta1 * memory.get("m", torch.zeros_like(x)) + (1 - beta1) * change
        return x - change

    return rule


CASES = {
    # name: (optimizer, options, learning rate, runner)
    "sgd": ("sgd", {"weightDecay": 0.1}, 0.05, lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1)),
    "sgd-momentum": (
        "sgd", {"momentum": 0.9, "dampening": 0.2, "weightDecay": 0.05}, 0.05,
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.2, weight_decay=0.05)),
    "sgd-nesterov": (
        "sgd", {"momentum": 0.8, "nesterov": True, "weightDecay": 0.05}, 0.03,
        lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8, nesterov=True, weight_decay=0.05)),
    "adam": ("adam", {"beta1": 0.8, "beta2": 0.99}, 0.01, lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.99))),
    "adam-decay": ("adam", {"weightDecay": 0.3}, 0.01, lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.3)),
    "adamw": (
        "adamw", {"weightDecay": 0.2, "beta2": 0.95, "epsilon": 1e-6}, 0.02,
        lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.2, betas=(0.9, 0.95), eps=1e-6)),
    "adafactor-torch": (
        "adafactor", {"weightDecay": 0.1}, 0.4,
        lambda p: torch.optim.Adafactor(p, lr=0.4, weight_decay=0.1)),
    "adafactor": ("adafactor", {}, 0.01, adafactor()),
    "adafactor-momentum": ("adafactor", {"beta1": 0.9, "clipThreshold": 0.7}, 0.01, adafactor(beta1=0.9, d=0.7)),
    "adafactor-absolute": (
        "adafactor", {"relativeStep": False, "scaleByParameter": False}, 0.003, adafactor(absolute=0.003)),
    "lion": ("lion", {"weightDecay": 0.5, "beta1": 0.95, "beta2": 0.98}, 0.01, lion(0.01, 0.95, 0.98, 0.5)),
    "lamb": ("lamb", {"weightDecay": 0.1}, 0.02, lamb(0.02, 0.9, 0.999, 1e-6, 0.1)),
    "lamb-limits": (
        "lamb", {"weightDecay": 0.1, "minimumNorm": 1.0, "maximumNorm": 3.0}, 0.02, lamb(0.02, 0.9, 0.999, 1e-6, 0.1, 1.0, 3.0)),
    "late": ("adamw", {"weightDecay": 0.2}, 0.02, lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.2)),
}


def flat(tensors):
    # Nine digits say a float32 exactly.
    return {name: [float(f"{float(x):.9g}") for x in value.flatten()] for name, value in tensors.items()}


def optimizers():
    cases = []
    for seed, (name, (optimizer, options, rate, runner)) in enumerate(CASES.items()):
        start, gradients = inputs(seed, missing=3 if name == "late" else 0)
        plain = name.startswith(("lion", "lamb", "adafactor")) and name != "adafactor-torch"
        after = (run_rule if plain else run_torch)(runner, start, gradients)
        cases.append({
            "name": name, "configuration": {"name": optimizer, "learningRate": rate, **options}, "shapes": SHAPES,
            "start": flat(start), "gradients": [flat(step) for step in gradients], "after": [flat(step) for step in after]})
    (HERE / "optimizers.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


def schedules():
    def values(make, steps):
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
        scheduler = make(optimizer)
        result = []
        for step in range(steps):
            result.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if step + 1 < steps:
                scheduler.step()
        return result

    one = torch.optim.lr_scheduler.OneCycleLR
    cases = [
        {"configuration": {"name": "one_cycle", "total": 50},
         "factors": values(lambda o: one(o, 1.0, total_steps=50), 50)},
        {"configuration": {"name": "one_cycle", "total": 37, "rise": 0.4, "divisor": 10, "finalDivisor": 100, "shape": "linear"},
         "factors": values(lambda o: one(o, 1.0, total_steps=37, pct_start=0.4, div_factor=10, final_div_factor=100,
                                         anneal_strategy="linear"), 37)},
        {"configuration": {"name": "one_cycle", "total": 60, "rise": 0.3, "threePhases": True},
         "factors": values(lambda o: one(o, 1.0, total_steps=60, pct_start=0.3, three_phase=True), 60)},
        {"configuration": {"name": "cosine", "total": 40, "floor": 0.1},
         "factors": values(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40, eta_min=0.1), 41)},
    ]
    (HERE / "schedules.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


optimizers()
schedules()
