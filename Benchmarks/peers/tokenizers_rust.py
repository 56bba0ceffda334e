"""The tokenizers library (Rust) on the texts of Martlet's tokenizer benchmarks, one thread: text by text, and by its fastest call."""

import os
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = [
    (0x61, 26), (0x61, 26), (0x61, 26), (0xE0, 23), (0x3B1, 25), (0x430, 32), (0x5D0, 27), (0x627, 36), (0x905, 53), (0xE01, 46),
    (0x3041, 83), (0x4E00, 2000), (0xAC00, 3000), (0x1F600, 70), (0x30, 10),
]


def code():
    folder = CHECKOUT / "Sources"
    lines = []
    for name in sorted((p.relative_to(folder).as_posix() for p in folder.rglob("*.swift")), key=lambda name: name.encode()):
        if len(lines) >= 20000:
            break
        lines += (folder / name).read_text(encoding="utf-8").split("\n")
    return lines[:20000]


def scripts():
    state = 1

    def following(bound):
        nonlocal state
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        return (state >> 8) % bound

    lines = []
    for _ in range(5000):
        line = ""
        for word in range(3 + following(20)):
            if word > 0:
                line += " "
            first, count = SCRIPTS[following(len(SCRIPTS))]
            for _ in range(1 + following(8)):
                line += chr(first + following(count))
            if following(6) == 0:
                line += "," if following(2) == 0 else "."
        lines.append(line)
    return lines


def case(name, texts, in_batches):
    def setup():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(CHECKOUT / f"Tests/MartletTokenizersTests/Fixtures/parity/{name}.json"))
        lines = texts()

        def one_by_one():
            for line in lines:
                tokenizer.encode(line)

        return (lambda: tokenizer.encode_batch_fast(lines)) if in_batches else one_by_one

    return setup


CASES = {}
for tokenizer_name in ["bert", "gpt2", "llama3", "llama2", "t5"]:
    CASES[f"tokenize code {tokenizer_name}"] = case(tokenizer_name, code, False)
    CASES[f"tokenize code {tokenizer_name} in batches"] = case(tokenizer_name, code, True)
    CASES[f"tokenize scripts {tokenizer_name}"] = case(tokenizer_name, scripts, False)
    CASES[f"tokenize scripts {tokenizer_name} in batches"] = case(tokenizer_name, scripts, True)
