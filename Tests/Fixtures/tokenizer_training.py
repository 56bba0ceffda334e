"""Writes MartletTokenizersTests/Fixtures/training.json: a text, and what the `tokenizers` library learns from it.

Run with `tokenizers` installed. The text is made of invented words, so that many pairs are equally frequent.
"""

import json
import pathlib
import random
import tempfile

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

random.seed(11)
parts = ["ka", "to", "ri", "men", "a", "sol", "ix", "ба", "ри", "語", "é", "123", "-", "th", "ing", "un", "der", "😀"]
words = ["".join(random.choices(parts, k=random.randint(1, 4))) for _ in range(260)]
text = "\n".join(" ".join(random.choices(words, weights=[1 / (i + 3) for i in range(260)], k=random.randint(1, 9))) for _ in range(420)) + "\n"
special = ["<unk>", "<s>"]
result = {"text": text, "bpe": {}}
with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/text.txt"
    pathlib.Path(path).write_text(text, encoding="utf-8")

    def train(model, pre_tokenizer, trainer):
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.train([path], trainer)
        return tokenizer

    for name, byte_level, options in [
        ("byteLevel", True, dict(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), vocab_size=420)),
        ("plain", False, dict(vocab_size=160)),
        ("minimumFrequency", False, dict(vocab_size=1000, min_frequency=20)),
        ("maximumLength", False, dict(vocab_size=160, max_token_length=5)),
        ("alphabetLimit", False, dict(vocab_size=120, limit_alphabet=12)),
    ]:
        tokenizer = train(
            models.BPE(unk_token="<unk>"), pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else pre_tokenizers.Whitespace(),
            trainers.BpeTrainer(special_tokens=special, show_progress=False, **options))
        model = json.loads(tokenizer.to_str())["model"]
        result["bpe"][name] = {
            "tokens": [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])], "merges": model["merges"]}
        print(name, len(model["vocab"]), "tokens,", len(model["merges"]), "merges")
    tokenizer = train(
        models.Unigram(), pre_tokenizers.Metaspace(), trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False))
    scores = {token: score for token, score in json.loads(tokenizer.to_str())["model"]["vocab"]}
    encoded = [tokenizer.encode(line).tokens for line in text.split("\n")]
    result["unigram"] = {
        "tokens": sum(map(len, encoded)), "logProbability": sum(scores[token] for line in encoded for token in line)}
    print("unigram", len(scores), result["unigram"])
path = pathlib.Path(__file__).parent.parent / "MartletTokenizersTests/Fixtures/training.json"
path.write_text(json.dumps(result, separators=(",", ":")))
print(path.stat().st_size, "bytes")
