"""What the checks of the kernels share: errors beside a float64 reference, a line for each case, and the exit status."""

import sys

import torch

failures = 0


def error(ours, reference, vanishing=0.0):
    """max |a - b| / max |b|; infinite for another shape or numbers that aren't finite. A reference whose greatest number is not
    above `vanishing` is compared with 1."""
    if ours.shape != reference.shape or not torch.isfinite(ours.float()).all():
        return float("inf")
    if reference.numel() == 0:
        return 0.0
    size = reference.double().abs().max()
    if vanishing and size <= vanishing:
        size = torch.ones_like(size)
    return ((ours.double() - reference.double()).abs().max() / size.clamp_min(1e-30)).item()


def report(name, errors, tolerance=1e-5):
    global failures
    bad = not max(errors.values()) <= tolerance  # NaN is bad
    failures += bad
    print(f"{'FAIL' if bad else 'ok  '} {name:64s} " + " ".join(f"{k}={v:.1e}" for k, v in errors.items()))


def finish():
    print(f"FAILED {failures}" if failures else "all within tolerance")
    sys.exit(1 if failures else 0)
