"""The peers' side of `martlet bench`: sets a case of peers/*.py up and runs it when told to, and says how long that took.

Usage: peer.py THREADS. One JSON object a line on standard input, one answer a line on standard output:

    {"list": true}     -> {"cases": [names], "versions": {"python": ..., "torch": ...}, "threads": n}
    {"case": name}     -> {"ready": name, "seconds": s}   sets the case up and calls it once, which may compile; s: that call
    {"run": k}         -> {"seconds": s}                  k calls, the clock around all of them
    {"memory": true}   -> {"bytes": b}                    most bytes of tensors alive at once in a call, beyond those before it; an error
                                                          after calls of over 15 s, whose record may take all memory itself
    {"release": true}  -> {"released": true}

What fails answers {"error": message}. A file of peers/ offers CASES: name -> function that prepares and returns the call.
"""

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path


def load_cases():
    folder = Path(__file__).parent / "peers"
    sys.path.insert(0, str(folder))
    cases = {}
    for path in sorted(folder.glob("*.py")):
        for name, setup in importlib.import_module(path.stem).CASES.items():
            if name in cases:
                raise ValueError(f"{path.name} offers the case {name!r} that another file has already")
            cases[name] = setup
    return cases


def seconds(run, count):
    start = time.perf_counter()
    for _ in range(count):
        run()
    return time.perf_counter() - start


def peak_bytes(torch, run):
    """The allocator's own account, as the profiler records it: every allocation and release in order of time."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = run()
    del result
    changes = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes.sort(key=lambda change: change[0])
    alive = most = 0
    for _, change in changes:
        alive += change
        most = max(most, alive)
    return most


def main():
    # Whatever a case prints goes to standard error; the answers keep the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    try:
        import torch
    except ImportError as error:
        answer({"error": f"{sys.executable} has no torch ({error})"})
        return 1
    torch.set_num_threads(int(sys.argv[1]))
    try:
        cases = load_cases()
    except Exception as error:  # a broken peer file must be named, not end in a closed pipe
        answer({"error": f"the peers could not be loaded: {type(error).__name__}: {error}"})
        return 1
    run, call = None, 0
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if "list" in request:
                versions = {"python": sys.version.split()[0], "torch": torch.__version__}
                answer({"cases": sorted(cases), "versions": versions, "threads": torch.get_num_threads()})
            elif "case" in request:
                run = None
                gc.collect()
                run = cases[request["case"]]()
                call = seconds(run, 1)
                answer({"ready": request["case"], "seconds": call})
            elif "run" in request:
                answer({"seconds": seconds(run, request["run"])})
            elif "memory" in request:
                if call > 15:
                    raise MemoryError(f"a call of {call:.0f} s has too many operations to be recorded")
                answer({"bytes": peak_bytes(torch, run)})
            elif "release" in request:
                run = None
                gc.collect()
                answer({"released": True})
            else:
                answer({"error": f"an unknown request: {line.strip()}"})
        except Exception as error:  # e.g. no compiler for torch.compile, or too little memory
            answer({"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
