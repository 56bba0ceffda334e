"""Makes what the parity test of the tokenizers compares: tokenizer files that cover every component of the Python package `tokenizers`,
a corpus of at least 100,000 texts made from a seed, and the ids the library gives them.

    python Tests/Fixtures/tokenizer_parity.py FOLDER [--texts 100000]
    MARTLET_TOKENIZER_PARITY=FOLDER swift test --filter TokenizerParity

With --small it writes the fixtures of the unit tests instead (a few hundred texts, small vocabularies):

    python Tests/Fixtures/tokenizer_parity.py Tests/MartletTokenizersTests/Fixtures/parity --small

Needs tokenizers, and sentencepiece for the compiled normalization rules that T5 and XLM-R use. In FOLDER: NAME.json (the tokenizer),
texts.bin (the length and the bytes of every text, some of them not UTF-8), NAME.ids (the count and the ids of every text). Numbers are
written seven bits to a byte, the lowest first, the eighth bit set where more follow.
"""

import argparse
import collections
import io
import json
import os
import random
import string
import sys
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SEED = 20260731

# Alphabets to make words of: letters that occur together, some with marks.
ALPHABETS = {
    "latin": "etaoinshrdlucmfwypvbgkqjxz",
    "accents": "éèêàâîïôûùçäöüßñåøæœšžčřýąęłńśźżğışőű",
    "vietnamese": "ăâđêôơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "greek": "αβγδεζηθικλμνξοπρστυφχψωάέήίόύώς",
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюяёђєіїљњћў",
    "arabic": "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئةىًٌٍَُِّْ",
    "hebrew": "אבגדהוזחטיךכלםמןנסעףפץצקרשתְִֵֶַָֹּ",
    "devanagari": "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसहािीुूेैोौ्ंः",
    "tamil": "அஆஇஈஉஊஎஏஐஒஓகஙசஞடணதநபமயரலவழளறனாிீுூெேைொோௌ்",
    "thai": "กขคฆงจฉชซญดตถทธนบปผฝพฟภมยรลวศษสหอฮะัาำิีึืุูเแโใไ็่้๊๋์",
    "khmer": "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអាិីឹឺុូួើឿៀេែៃោៅំះ្",
    "georgian": "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ",
    "hangul": "가나다라마바사아자차카타파하한국어말은는이가를을에서도로",
    "jamo": "ᄀᄂᄃᄅᄆᄇᄉᄋ각ᅡᅢᅣᅥᅦᆨᆫᆮᆯ",
    "han": "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生自会那后能对着事其里所去行过家十用发天如然作方成者多日都三小军二无同么经法当起与好看学进种将还分此心前面又定见只主没公从",
    "kana": "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをんアイウエオカキクケコサシスセソーッャュョ",
    "fullwidth": "ＡＢＣａｂｃ０１２３！？（）ｱｲｳｶﾞﾊﾟ",
    "math": "𝐀𝑩𝒞𝔇𝕬𝟎𝟙𝟤ℝℤℂℍ∑∏∫√∞≤≥≠ﬁﬂ①②Ⅳ½²³ªº™№㎏㍿",
    "rare": "𐍈𐎠𒀀𓀀𐤀ꙮ𞤀𝄞𠀀𪜀𰀀ꬰꭓᏣᏤⴰⵣߊߋᠮᠣߒ",
}

EMOJI = [
    "😀", "😂", "🤣", "❤️", "❤", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇰🇷", "1️⃣", "#️⃣", "👩🏿‍🚀", "🫠", "🫨", "🧑‍🤝‍🧑", "☺️", "☺", "✌🏻", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "‼️", "🪿", "©", "™️",
]

SPACES = [" ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\u2029", "\x0b", "\x0c", "\x85", "\u1680", "\u202f", "        ", " \t \n  "]

SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<mask>", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra>", "Word", "WORD", "word", "<|a|>", "<|ab|>", "<0x41>", "▁", "▁▁", "Ġ", "##a", "</w>"]

PUNCTUATION = list(".,;:!?-_()[]{}<>/\\|@#$%^&*+=~`'\"") + ["…", "—", "–", "«", "»", "“", "”", "’", "‘", "、", "。", "？", "！", "（", "）", "¿", "¡", "·", "׳", "،", "؟", "।", "๛", "†", "§", "¶", "°", "€", "£", "¥", "₹", "₿", "←", "⇒", "■", "☃", "''", "``", "..", "...", "!!", "?!", "--", "==", "->", "=>", "::", "//", "/*", "*/", "&&", "||", "</", "/>"]

CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'T", "'RE", "'Ve", "'LL", "'ſ", "'sa", "'x", "’s", "'", "''s", "do not", " n't", " 've"]


class Corpus:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lexicons = {}
        for name, letters in ALPHABETS.items():
            words = []
            for _ in range(1500):
                length = min(1 + int(self.random.expovariate(0.25)), 14)
                words.append("".join(self.random.choice(letters) for _ in range(length)))
            self.lexicons[name] = words
        english = "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when we there can an your which their said if do will each about how up out them then she many some so these would other into has more her two like him see time could no make than first been its who now people my made over did down only way find use may water long little very after words called just where most know get through back much before go good new write our used me man too any day same right look think also around another came come work three word must because does part even place well such here take why things help put years different away again off went old number great tell men say small every found still between name should home big give air line set own under read last never us left end along while might next sound below saw something thought both few those always looked show large often together asked house don't world going want school important until form food keep children feet land side without boy once animals life enough took sometimes four head above kind began almost live page got earth need far hand high year mother light parts country father let night following picture being study second eyes soon times story boys since white days ever paper hard near sentence better best across during today others however sure means knew its try told young miles sun ways thing whole hear example heard several change answer room sea against top turned learn point city play toward five using himself usually".split()
        self.lexicons["english"] = english
        self.code = self.code_lines()

    def code_lines(self):
        r = self.random
        lines = []
        names = ["value", "index", "self.items", "count", "result", "x", "y2", "__init__", "TokenizerModel", "parse_args", "HTTPServer", "maxLength", "kBufferSize", "i", "tmp_3", "data[0]", "fooBarBaz", "np.float32", "std::vector<int>", "&mut self", "Option<String>"]
        for _ in range(3000):
            a, b, c = (r.choice(names) for _ in range(3))
            indent = " " * (4 * r.randrange(5)) if r.random() < 0.8 else "\t" * r.randrange(4)
            n = r.randrange(10 ** r.randrange(1, 9))
            lines.append(indent + r.choice([
                f"if {a} == {b}:", f"for {a} in range({n}):", f"return {a} + {b} * {n}", f"def {a}({b}, {c}={n}):", f"{a} = {b}.{c}({n})  # {a}",
                f"let {a}: [{b}] = {c} ?? {n}", f"func {a}(_ {b}: Int) -> {c} {{", f"}} // {a}", f"std::cout << {a} << \"{b}\\n\";", f"assert {a} != {b}, f'{{{c}!r}} {n:#x}'",
                f"fn {a}<T>(&self, {b}: &str) -> Result<{c}, Error>", f"SELECT {a}, COUNT(*) FROM {b} WHERE {c} >= {n};", f"<div class=\"{a}\" id='{b}'>{c}</div>", f"#include <{a}.h>", f"\\frac{{{a}}}{{{b}}} \\cdot {n}", f"0x{n:08X} | 0b{n % 64:b} ^ {n}.{n % 97}e-{n % 30}",
                f"https://www.{a}.org/{b}?q={c}&n={n}#top", f"{a}@{b}.com", f"[{a}]({b}) **{c}** `{n}`",
            ]))
        return lines

    def word(self):
        r = self.random
        if r.random() < 0.5:
            word = self.lexicons["english"][min(int(r.expovariate(0.02)), len(self.lexicons["english"]) - 1)]
        else:
            lexicon = self.lexicons[r.choice(list(self.lexicons))]
            word = lexicon[min(int(r.expovariate(0.01)), len(lexicon) - 1)]
        roll = r.random()
        if roll < 0.08:
            word = word.capitalize()
        elif roll < 0.12:
            word = word.upper()
        if r.random() < 0.03:
            word += r.choice(CONTRACTIONS)
        if r.random() < 0.02:
            word += "".join(chr(r.randrange(0x300, 0x370)) for _ in range(r.randrange(1, 5)))
        return word

    def number(self):
        r = self.random
        n = r.randrange(10 ** r.randrange(1, 13))
        return r.choice([str(n), f"{n:,}", f"{n / 100:.2f}", f"-{n}", f"{n}%", f"${n}", "".join(chr(0x660 + int(d)) for d in str(n)), "".join(chr(0x966 + int(d)) for d in str(n)), f"{n}th", f"v{n % 10}.{n % 7}.{n % 100}"])

    def noise(self):
        """Any characters at all: unassigned ones, private ones, controls, every plane."""
        r = self.random
        out = []
        for _ in range(r.randrange(1, 12)):
            top = r.choice([0x20, 0x80, 0x250, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])
            c = r.randrange(top)
            out.append(chr(c) if not 0xD800 <= c < 0xE000 else "\ufffd")
        return "".join(out)

    def text(self):
        r = self.random
        roll = r.random()
        if roll < 0.12:
            return r.choice(self.code)
        if roll < 0.15:
            return "\n".join(r.choice(self.code) for _ in range(r.randrange(2, 6)))
        if roll < 0.17:
            return self.noise()
        if roll < 0.18:
            return r.choice(["", " ", "\n", "  \n\n ", "a", "'", r.choice(EMOJI), r.choice(SPECIAL), r.choice(SPACES)])
        out = []
        if r.random() < 0.05:
            out.append(r.choice(SPACES))
        for i in range(1 + min(int(r.expovariate(0.1)), 60)):
            if i > 0:
                roll = r.random()
                if roll < 0.9:
                    out.append(" ")
                elif roll < 0.97:
                    out.append(r.choice(SPACES))
            roll = r.random()
            if roll < 0.85:
                out.append(self.word())
            elif roll < 0.89:
                out.append(self.number())
            elif roll < 0.92:
                out.append(r.choice(EMOJI))
            elif roll < 0.94:
                out.append(self.noise())
            elif roll < 0.96:
                out.append(r.choice(SPECIAL))
            else:
                out.append(r.choice(CONTRACTIONS))
            if r.random() < 0.15:
                out.append(r.choice(PUNCTUATION))
        return "".join(out)

    def record(self):
        """The bytes of a text; one in fifty is damaged."""
        r = self.random
        data = bytearray(self.text().encode("utf-8"))
        if r.random() < 0.02 and data:
            for _ in range(r.randrange(1, 4)):
                at = r.randrange(len(data))
                kind = r.randrange(4)
                if kind == 0:
                    data[at] = r.randrange(256)
                elif kind == 1:
                    data.insert(at, r.choice([0x80, 0xBF, 0xC0, 0xC3, 0xE2, 0xED, 0xF0, 0xF5, 0xFF]))
                elif kind == 2:
                    del data[at:]
                    data += b"\xf0\x9f\x98"
                else:
                    data[at:at] = r.choice([b"\xed\xa0\x80", b"\xc0\xaf", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xf0\x9f"])
                if not data:
                    break
        return bytes(data)

    def long_texts(self, small):
        r = self.random
        size = 160 if small else 60000
        yield "a" * size
        yield ("ab" * size)[: size // 2]
        yield " " * (size // 4)
        yield "\n" * (size // 8)
        yield "".join(self.word() for _ in range(size // 20))
        yield " ".join(self.word() for _ in range(size // 10))
        yield "=" * (size // 4) + "1" * (size // 4)
        yield "字" * (size // 10)
        yield "e" + "\u0301\u0327\u0345\u0334" * (size // 40)
        yield "😀" * (size // 20)
        yield "".join(chr(c) for c in range(0x20, 0x3000, 37 if small else 1))
        yield " ".join(chr(c) for c in range(0x3000, 0x3400, 37 if small else 1))


def varint(n):
    out = bytearray()
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def write_records(path, records):
    with open(path, "wb") as f:
        for data in records:
            f.write(varint(len(data)) + data)


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
])


FEW_RULES = "\n".join([
    "9\t20", "A\t20", "D\t20", "D A\t20", "3000\t20", "A0\t20", "B\t", "200B\t20", "FB01\t66 69", "FF21\t41", "FF41\t61", "65 301\tE9", "BD\t31 2044 32", "1100 1161\tAC00",
    "30AB 3099\t30AC", "FF76 FF9E\t30AC", "337F\t682A 5F0F 4F1A 793E", "2764\t3C 33", "49\t69 62", "41 42 43\t78",
])


def precompiled(small):
    """The compiled rules of nmt_nfkc (or a few rules of every kind), out of a throw-away SentencePiece model."""
    import sentencepiece

    out = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(FEW_RULES)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a few words to train with", "and some more of them"] * 10), model_writer=out, vocab_size=20,
            minloglevel=2, **({"normalization_rule_tsv": rules.name} if small else {"normalization_rule_name": "nmt_nfkc"}))
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    model.ParseFromString(out.getvalue())
    return model.normalizer_spec.precompiled_charsmap


BYTES = [f"<0x{b:02X}>" for b in range(256)]


class Makers:
    """Every method whose name begins with make_ gives a tokenizer."""

    def __init__(self, texts, size):
        self.texts = texts
        self.size = size

    def bpe(self, tokenizer, special=(), alphabet=None, size=None, **options):
        trainer = trainers.BpeTrainer(vocab_size=size or self.size, special_tokens=list(special), show_progress=False, initial_alphabet=alphabet or [], limit_alphabet=min(1000, self.size // 2), **options)
        tokenizer.train_from_iterator(self.texts, trainer)
        return tokenizer

    def byte_level(self, tokenizer, special=()):
        return self.bpe(tokenizer, special, sorted(pre_tokenizers.ByteLevel.alphabet()))

    def make_gpt2(self):
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        t.post_processor = processors.ByteLevel(trim_offsets=False)
        return self.byte_level(t, ["<|endoftext|>"])

    def make_roberta(self):
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        t.decoder = decoders.ByteLevel()
        self.byte_level(t, ["<s>", "<pad>", "</s>", "<unk>"])
        t.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        t.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=True)
        return t

    def make_llama3(self):
        t = Tokenizer(models.BPE(ignore_merges=True))
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        self.byte_level(t)
        t.add_special_tokens(["<|begin_of_text|>", "<|im_start|>", "<|im_end|>"])
        begin = t.token_to_id("<|begin_of_text|>")
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing("<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|>:1 $B:1", [("<|begin_of_text|>", begin)])])
        return t

    def make_qwen2(self):
        t = Tokenizer(models.BPE())
        t.normalizer = normalizers.NFC()
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        self.byte_level(t)
        t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        return t

    def make_o200k(self):
        t = Tokenizer(models.BPE(ignore_merges=True))
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(O200K), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        return self.byte_level(t)

    def make_deepseek(self):
        t = Tokenizer(models.BPE())
        t.normalizer = normalizers.Sequence([])
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex("[\r\n]"), "isolated"), pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"), pre_tokenizers.Split(Regex(r"\s?\p{P}+"), "isolated"),
            pre_tokenizers.Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        return self.byte_level(t)

    def make_byte_normalizer(self):
        t = Tokenizer(models.BPE())
        t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.ByteLevel()])
        t.pre_tokenizer = pre_tokenizers.Split("Ġ", "merged_with_next")
        t.decoder = decoders.ByteLevel()
        return self.byte_level(t)

    def fallback(self, tokenizer):
        self.bpe(tokenizer, ["<unk>", "<s>", "</s>"] + BYTES)
        # The library marks everything given to the trainer as special; only three are.
        data = json.loads(tokenizer.to_str())
        data["added_tokens"] = data["added_tokens"][:3]
        return Tokenizer.from_str(json.dumps(data))

    def make_llama2(self):
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        t.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        t = self.fallback(t)
        t.pre_tokenizer = None
        data = json.loads(t.to_str())
        data["pre_tokenizer"] = None
        t = Tokenizer.from_str(json.dumps(data))
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        t.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", [("<s>", 1)])
        return t

    def make_mistral(self):
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        t = self.fallback(t)
        data = json.loads(t.to_str())
        data["pre_tokenizer"]["split"] = False
        t = Tokenizer.from_str(json.dumps(data))
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        return t

    def make_gemma(self):
        t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        t.normalizer = normalizers.Replace(" ", "▁")
        t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        t = self.fallback(t)
        t.add_tokens(["  ", "   ", "\n\n", "\t"])
        t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        return t

    def make_clip(self):
        t = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        t.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        t.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.BPEDecoder("</w>")])
        self.bpe(t, ["<unk>"], sorted(pre_tokenizers.ByteLevel.alphabet()), end_of_word_suffix="</w>")
        return t

    def make_bpe_prefix(self):
        t = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
        t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()])
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits()])
        t.decoder = decoders.WordPiece()
        return self.bpe(t, ["[UNK]"], continuing_subword_prefix="##")

    def wordpiece(self, normalizer, pre_tokenizer=None):
        t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        t.normalizer = normalizer
        t.pre_tokenizer = pre_tokenizer or pre_tokenizers.BertPreTokenizer()
        t.decoder = decoders.WordPiece()
        t.train_from_iterator(self.texts, trainers.WordPieceTrainer(vocab_size=self.size, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False, limit_alphabet=min(900, self.size // 2)))
        return t

    def make_bert(self):
        t = self.wordpiece(normalizers.BertNormalizer(lowercase=True))
        t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        return t

    def make_bert_cased(self):
        t = self.wordpiece(normalizers.BertNormalizer(lowercase=False, strip_accents=False))
        t.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
        t.enable_truncation(48)
        t.enable_padding(pad_to_multiple_of=8, pad_id=0, pad_token="[PAD]")
        return t

    def make_bert_accents(self):
        return self.wordpiece(normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, lowercase=True, strip_accents=False))

    def unigram(self, normalizer, pre_tokenizer, special=("<unk>", "<s>", "</s>"), **options):
        t = Tokenizer(models.Unigram())
        if normalizer:
            t.normalizer = normalizer
        t.pre_tokenizer = pre_tokenizer
        # Sentences of bounded length: the trainer's suffix array is slow on long ones. Every character left must become a token.
        counts = collections.Counter("".join(t.normalizer.normalize_str(x[:300]) if normalizer else x[:300] for x in self.texts))
        kept = {c for c, _ in counts.most_common(self.size // 2)} | set(string.printable)
        texts = ["".join(c for c in (t.normalizer.normalize_str(x[:300]) if normalizer else x[:300]) if c in kept) for x in self.texts]
        t.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=self.size, special_tokens=list(special), unk_token="<unk>", show_progress=False, max_piece_length=12, **options))
        return t

    def make_t5(self):
        t = self.unigram(normalizers.Precompiled(precompiled(self.size < 1000)), pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]), ["<pad>", "</s>", "<unk>"])
        t.decoder = decoders.Metaspace()
        t.add_special_tokens([AddedToken("<extra>", rstrip=True)])
        t.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
        return t

    def make_xlm_roberta(self):
        t = self.unigram(normalizers.Sequence([normalizers.Precompiled(precompiled(self.size < 1000)), normalizers.Replace(Regex(" {2,}"), " ")]), pre_tokenizers.Metaspace(prepend_scheme="always"))
        t.decoder = decoders.Metaspace()
        return t

    def make_albert(self):
        t = self.unigram(
            normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Precompiled(precompiled(self.size < 1000))]),
            pre_tokenizers.Metaspace(prepend_scheme="first"))
        t.decoder = decoders.Metaspace(prepend_scheme="first")
        t.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
        return t

    def make_unigram_bytes(self):
        t = self.unigram(normalizers.Sequence([normalizers.Nmt(), normalizers.NFKC()]), pre_tokenizers.Sequence([pre_tokenizers.UnicodeScripts(), pre_tokenizers.Metaspace(prepend_scheme="never")]), ["<unk>", "<s>"] + BYTES)
        data = json.loads(t.to_str())
        data["model"]["byte_fallback"] = True
        data["added_tokens"] = data["added_tokens"][:2]
        t = Tokenizer.from_str(json.dumps(data))
        t.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
        return t

    def make_words(self):
        t = Tokenizer(models.WordLevel(unk_token="<unk>"))
        t.normalizer = normalizers.Sequence([normalizers.Strip(left=False, right=True), normalizers.NFD(), normalizers.StripAccents()])
        t.pre_tokenizer = pre_tokenizers.Whitespace()
        t.train_from_iterator(self.texts, trainers.WordLevelTrainer(vocab_size=self.size, special_tokens=["<unk>"], show_progress=False))
        return t

    def make_added(self):
        t = self.wordpiece(normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()]), pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("contiguous")]))
        t.add_tokens([AddedToken("Word", single_word=True), AddedToken("<|a|>", lstrip=True), AddedToken("<|ab|>", rstrip=True, normalized=False), AddedToken("<|a", normalized=False), AddedToken("É", normalized=True), AddedToken("des", single_word=True, lstrip=True, rstrip=True), AddedToken(" the", normalized=False), AddedToken("國", normalized=False)])
        t.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True), "<s>"])
        return t

    def split_model(self, pre_tokenizer):
        t = Tokenizer(models.BPE(unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizer
        return self.bpe(t, ["<unk>"], size=self.size // 2)

    def make_split_previous(self):
        return self.split_model(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s"), "merged_with_previous"), pre_tokenizers.Punctuation("merged_with_next")]))

    def make_split_next(self):
        return self.split_model(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"[\d\s]+|(?=\p{Lu})"), "merged_with_next"), pre_tokenizers.Punctuation("merged_with_previous")]))

    def make_split_contiguous(self):
        return self.split_model(pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("e"), pre_tokenizers.Split(Regex(r"\w"), "contiguous", invert=True), pre_tokenizers.Punctuation("removed")]))

    def make_split_boundary(self):
        return self.split_model(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\b|^|$"), "isolated"), pre_tokenizers.Split("th", "isolated"), pre_tokenizers.FixedLength(7)]))


def expected(tokenizer, records, path):
    with open(path, "wb") as f:
        for data in records:
            ids = tokenizer.encode(data.decode("utf-8", errors="replace")).ids
            f.write(varint(len(ids)) + b"".join(map(varint, ids)))


DETAILS = ["Hello, world! It's  the  2nd naïve café—don’t you think?", "def f(x):\n    return x ** 2  # 字符 😀", "  spaces\tand\nlines <mask> <s>word", "日本語とкириллица и العربية", ""]


def details(tokenizer):
    """Tokens, offsets in characters, decoded text, and a pair."""

    def encoding(e):
        return {"ids": e.ids, "tokens": e.tokens, "types": e.type_ids, "mask": e.attention_mask, "special": e.special_tokens_mask, "offsets": [list(o) for o in e.offsets]}

    single = []
    for text in DETAILS:
        e = tokenizer.encode(text)
        single.append({**encoding(e), "decoded": tokenizer.decode(e.ids), "decoded_all": tokenizer.decode(e.ids, skip_special_tokens=False), "plain": tokenizer.encode(text, add_special_tokens=False).ids})
    return {"single": single, "pair": encoding(tokenizer.encode(DETAILS[0], DETAILS[1]))}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--texts", type=int, default=100000)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, exist_ok=True)
    corpus = Corpus(SEED)
    count = 90 if arguments.small else arguments.texts
    records = [corpus.record() for _ in range(count)]
    records += [t.encode() for t in corpus.long_texts(arguments.small)]
    write_records(os.path.join(arguments.folder, "texts.bin"), records)
    training = [corpus.text() for _ in range(1500 if arguments.small else 8000)]
    described = {"texts": DETAILS}
    makers = Makers(training, 700 if arguments.small else 4000)
    for name in dir(makers):
        if not name.startswith("make_"):
            continue
        name = name[5:]
        if arguments.only and name not in arguments.only:
            continue
        tokenizer = getattr(makers, "make_" + name)()
        path = os.path.join(arguments.folder, name)
        tokenizer.save(path + ".json", pretty=False)
        # What counts is the file: some properties change when it is read.
        tokenizer = Tokenizer.from_file(path + ".json")
        expected(tokenizer, records, path + ".ids")
        described[name] = details(tokenizer)
        print(name, tokenizer.get_vocab_size(), file=sys.stderr)
    with open(os.path.join(arguments.folder, "details.json"), "w") as f:
        json.dump(described, f, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    main()
