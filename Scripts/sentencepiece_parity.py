"""Compares `martlet tokenize MODEL.model` with the Python package sentencepiece on generated lines of mixed text.

Usage: sentencepiece_parity.py --martlet ./martlet [--lines 100000] MODEL.model...

The lines are those of the tokenizers' parity test (Tests/Fixtures/tokenizer_parity.py): code, many scripts, emoji, controls, any characters,
very long ones; without line breaks, and valid UTF-8, since sentencepiece repairs bytes in its own way. Exit status 1 when ids differ.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "Tests/Fixtures"))

import sentencepiece  # noqa: E402
from tokenizer_parity import SEED, Corpus  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--martlet", required=True)
    parser.add_argument("--lines", type=int, default=100000)
    parser.add_argument("models", nargs="+")
    options = parser.parse_args()
    corpus = Corpus(SEED)
    lines = [corpus.text() for _ in range(options.lines)] + list(corpus.long_texts(False))
    lines = [line.replace("\n", " ").replace("\r", " ") for line in lines]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lines.txt")
        path.write_bytes(("\n".join(lines) + "\n").encode())
        for model in options.models:
            start = time.perf_counter()
            output = subprocess.run(
                [options.martlet, "tokenize", model, "--input", str(path), "--json", "--no-special", "--threads", "1"], check=True,
                capture_output=True).stdout
            ours = time.perf_counter() - start
            found = [json.loads(line)["ids"] for line in output.splitlines()]
            processor = sentencepiece.SentencePieceProcessor(model_file=model)
            start = time.perf_counter()
            expected = [processor.encode(line) for line in lines]
            theirs = time.perf_counter() - start
            wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
            failed |= bool(wrong)
            print(
                f"{Path(model).name}: {len(lines)} lines, {sum(map(len, expected))} ids, {len(wrong)} lines differ; "
                f"martlet {ours:.1f} s (whole process with JSON), sentencepiece {theirs:.1f} s")
            for i in wrong[:3]:
                print("  ", repr(lines[i][:200]))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
