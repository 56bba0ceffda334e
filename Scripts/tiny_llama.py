"""Trains a small Llama on a text and saves it as Hugging Face does, with its byte-level BPE tokenizer: something to linearise, convert or
serve where no pretrained model is at hand.

Usage: tiny_llama.py TEXT OUT [--steps 600] [--seed 0] [--threads 1]     with torch, transformers and tokenizers
Reads the first nine tenths of TEXT alone and writes the rest to OUT/held-out.txt.
"""

import argparse
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
VOCABULARY, LENGTH, BATCH, RATE, WARMUP = 1024, 256, 8, 3e-3, 40


def tokenizer_of(text):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet))
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    text = options.text.read_text()
    cut = len(text) * 9 // 10
    tokenizer = tokenizer_of(text[:cut])
    tokens = torch.tensor(tokenizer.encode(text[:cut]).ids)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * max(0.05, 1 - step / options.steps)
    )
    start = time.perf_counter()
    for step in range(options.steps):
        places = torch.randint(0, len(tokens) - LENGTH, (BATCH,))
        batch = torch.stack([tokens[i : i + LENGTH] for i in places])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == options.steps:
            print(f"step {step + 1} of {options.steps}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    model.save_pretrained(options.out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END).save_pretrained(options.out)
    (options.out / "held-out.txt").write_text(text[cut:])


main()
