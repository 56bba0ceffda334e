"""Writes two small SentencePiece models, and what the `sentencepiece` library makes of some texts with them:
MartletTokenizersTests/Fixtures/{unigram,bpe}.model and sentencepiece.json. Run with `sentencepiece` installed.

Unigram has normalization rules of its own (a table of nmt_nfkc would have 240 kB); BPE has byte fallback, user-defined pieces and
keeps blanks as they are.
"""

import json
import pathlib
import random
import tempfile

import sentencepiece

random.seed(3)
folder = pathlib.Path(__file__).parent.parent / "MartletTokenizersTests/Fixtures"
scripts = [
    "Привет, как твои дела сегодня?", "今天天气很好我们去公园", "日本語のテキスト", "안녕하세요 세계", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "Γειά σου Κόσμε", "Ünïcödé ﬁﬂ ①② ＡＢＣ ½ Å é e\u0301", "👩‍👩‍👧‍👦🇩🇪 😀", "a  b   c    d", "  lead and trail  ", "\ttabs\tand\u00a0nbsp\u3000x",
    "\u200bzero\u200dwidth\ufeff", "control\x01\x1f\x7f", "▁under▁score ▁▁", "<s> </s> <unk> <0x41> user_def <sep>", "def f(x):\n    return x + 1\n",
]
syllables = [a + b for a in ["b", "d", "k", "l", "m", "n", "st", "tr", "sh", ""] for b in ["a", "e", "i", "on", "er", "ing", "ous"]]
words = ["".join(random.choices(syllables, k=random.randint(1, 4))) for _ in range(400)]
lines = [" ".join(random.choices(words, weights=[1 / (i + 1) for i in range(400)], k=random.randint(3, 15))) for _ in range(800)]
texts = scripts + random.sample(lines, 40) + ["", " ", "   ", "x" * 300, "na " * 100, "\n", "user_defuser_def", "aab<sep>ab "]
for _ in range(150):
    texts.append("".join(chr(random.choice([random.randint(32, 126), random.randint(160, 591), 32, 32, random.randint(0x3040, 0x30ff),
        random.randint(0x300, 0x36f), 0x2581, random.randint(0x1f600, 0x1f640), random.randint(1, 31)])) for _ in range(random.randint(1, 40))))
for _ in range(60):
    texts.append("".join(random.choice(scripts + lines[:50])[random.randint(0, 4):random.randint(5, 25)] for _ in range(3)))

with tempfile.TemporaryDirectory() as temporary:
    text = pathlib.Path(temporary) / "text.txt"
    text.write_text("\n".join(lines + scripts * 4))
    rules = pathlib.Path(temporary) / "rules.tsv"
    # Code points that become others: full-width letters, ligatures, spaces; "é" in two parts; "abc" as a whole; ZWSP goes.
    table = [([0xFF21 + i], [0x41 + i]) for i in range(26)] + [
        ([0xFB01], [0x66, 0x69]), ([0xFB02], [0x66, 0x6C]), ([0xA0], [0x20]), ([0x3000], [0x20]), ([9], [0x20]), ([10], [0x20]), ([0x65, 0x301], [0xE9]),
        ([0x65, 0x301, 0x302], [0x45]), ([0x200B], []), ([0x200D], []), ([0xFEFF], []), ([0xBD], [0x31, 0x2F, 0x32]), ([0x2460], [0x31, 0x20]), ([1], [])]
    rules.write_text("".join(" ".join(f"{c:X}" for c in a) + "\t" + " ".join(f"{c:X}" for c in b) + "\n" for a, b in table))
    shared = dict(input=str(text), hard_vocab_limit=False, minloglevel=2, num_threads=1)
    sentencepiece.SentencePieceTrainer.train(
        model_prefix=f"{temporary}/unigram", model_type="unigram", vocab_size=500, normalization_rule_tsv=str(rules), character_coverage=0.995,
        user_defined_symbols=["user_def", "na"], **shared)
    sentencepiece.SentencePieceTrainer.train(
        model_prefix=f"{temporary}/bpe", model_type="bpe", vocab_size=800, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, user_defined_symbols=["user_def", "<sep>"], character_coverage=0.99, allow_whitespace_only_pieces=True,
        **shared)
    result = {"texts": texts}
    for name in ["unigram", "bpe"]:
        data = (pathlib.Path(temporary) / f"{name}.model").read_bytes()
        (folder / f"{name}.model").write_bytes(data)
        model = sentencepiece.SentencePieceProcessor(model_proto=data)
        ids = [model.encode(text) for text in texts]
        result[name] = {"ids": ids, "decoded": [model.decode(line) for line in ids]}
        print(name, model.get_piece_size(), "pieces,", len(data), "bytes,", sum(map(len, ids)), "ids")
(folder / "sentencepiece.json").write_text(json.dumps(result, separators=(",", ":")))
