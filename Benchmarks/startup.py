"""Measures whole processes, from their start to the first token: `martlet generate` beside a Python program with transformers.

Usage: startup.py --martlet ./.build/release/martlet [--folder DIR] [--rounds 5] [--tokens 1]

Makes a random Llama of 109 million parameters in DIR (or a temporary folder) with a small tokenizer trained on this repository's sources,
runs both programs in turn, and prints the median, least and greatest seconds and their ratio. Files are in the page cache for both.
Needs torch, transformers, tokenizers.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    out = model.generate(**tokenizer(sys.argv[2], return_tensors="pt"), max_new_tokens=int(sys.argv[3]), do_sample=False)
print(tokenizer.decode(out[0]))
"""


def make(folder):
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
        max_position_embeddings=4096, tie_word_embeddings=True)).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = [str(p) for p in sorted((Path(__file__).parent.parent / "Sources").rglob("*.swift"))]
    tokenizer.train(sources, trainers.BpeTrainer(vocab_size=8000, special_tokens=["<s>", "</s>"], show_progress=False))
    tokenizer.save(str(Path(folder, "tokenizer.json")))
    Path(folder, "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}\n')


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--martlet", required=True)
    parser.add_argument("--folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        if not Path(folder, "config.json").exists():
            make(folder)
        prompt = "public func callAsFunction(_ x: Tensor) -> Tensor {"
        ours = [options.martlet, "generate", folder, prompt, "--tokens", str(options.tokens), "--temperature", "0"]
        theirs = [sys.executable, "-c", PROGRAM, folder, prompt, str(options.tokens)]
        seconds(ours), seconds(theirs)  # files into the page cache
        pairs = [(seconds(ours), seconds(theirs)) for _ in range(options.rounds)]
        for name, values in (("martlet", [a for a, _ in pairs]), ("transformers", [b for _, b in pairs])):
            print(f"{name:13s} {statistics.median(values):.3f} s ({min(values):.3f}–{max(values):.3f})")
        ratios = [b / a for a, b in pairs]
        print(f"{'ratio':13s} {statistics.median(ratios):.1f}× ({min(ratios):.1f}–{max(ratios):.1f})")


if __name__ == "__main__":
    main()
