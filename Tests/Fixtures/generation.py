"""Writes what transformers generates from a small checkpoint with beams, penalties and bans: generation.json of MartletInferenceTests.

Usage: generation.py [output]. Needs torch and transformers; the checkpoint is one of MartletModelsTests' fixtures.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

TESTS = Path(__file__).parent.parent
FOLDER = TESTS / "MartletModelsTests/Fixtures/checkpoints/llama-2"
CASES = {
    "greedy with repetition penalty": dict(repetition_penalty=1.3),
    "greedy without repeated runs": dict(no_repeat_ngram_size=2),
    "four beams": dict(num_beams=4, num_return_sequences=4),
    "four beams that favour length": dict(num_beams=4, num_return_sequences=4, length_penalty=2.0),
    "three beams that favour shortness": dict(num_beams=3, num_return_sequences=3, length_penalty=0.2),
    "beams that stop early": dict(num_beams=3, num_return_sequences=3, early_stopping=True),
}


def main():
    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    model.generation_config.pad_token_id = 0
    generator = torch.Generator().manual_seed(1)
    result = []
    for name, options in CASES.items():
        for length in (3, 9):
            prompt = torch.randint(3, model.config.vocab_size, (1, length), generator=generator)
            # Two frequent tokens end a sequence, so that some hypotheses end before the others.
            logits = model(prompt).logits[0].mean(0)
            ends = logits.topk(6).indices[4:].tolist() if "beams" in name else []
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, return_dict_in_generate=True,
                output_scores=True, eos_token_id=ends or None, **options)
            sequences = out.sequences[:, length:].tolist()
            scores = out.sequences_scores.tolist() if "num_beams" in options else []
            trimmed = []
            for tokens in sequences:
                end = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
                trimmed.append(tokens[:end])
            result.append(dict(
                name=name, options=options, prompt=prompt[0].tolist(), stopTokens=ends, maximumTokens=12, sequences=trimmed, scores=scores))
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else TESTS / "MartletInferenceTests/Fixtures/generation.json"
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
