"""Writes Sources/MartletTokenizers/Unicode/UnicodeData.swift: the character classes, decompositions and case mappings of the Python
package `tokenizers`, asked of the library itself, one code point at a time. Its parts come with tables of several Unicode versions, so no
single version of the standard gives the same ids.

    python Tests/Fixtures/tokenizers_unicode.py Sources/MartletTokenizers/Unicode/UnicodeData.swift
"""

import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

SCALARS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def removed_by_pre_tokenizer(pre_tokenizer):
    return {c for c in SCALARS if pre_tokenizer.pre_tokenize_str(chr(c)) == []}


def matching(pattern):
    return removed_by_pre_tokenizer(pre_tokenizers.Split(Regex(pattern), "removed"))


def changed(normalizer, c):
    return normalizer.normalize_str(chr(c)) == ""


def classes():
    bert = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    marks = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    accents = normalizers.StripAccents()
    # A character that Whitespace() joins to a letter on its left is a word character of the `regex` crate.
    whitespace = pre_tokenizers.Whitespace()
    digits = pre_tokenizers.Digits(individual_digits=True)
    punctuation = removed_by_pre_tokenizer(pre_tokenizers.Punctuation("removed"))
    upper = matching(r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}]")
    lower = matching(r"[\p{Ll}\p{Lm}\p{Lo}]")
    spaces = removed_by_pre_tokenizer(pre_tokenizers.WhitespaceSplit())
    sets = [
        matching(r"\p{L}"),
        matching(r"\p{N}"),
        spaces,
        matching(r"\p{M}"),
        matching(r"\p{P}"),
        matching(r"\p{S}"),
        upper,
        lower,
        matching(r"\w"),
        punctuation,
        {c for c in SCALARS if changed(bert, c)} - {0, 0xFFFD},
        {c for c in SCALARS if changed(marks, c)},
        {c for c in SCALARS if changed(accents, c)},
        {c for c in SCALARS if c not in spaces and len(whitespace.pre_tokenize_str("a" + chr(c))) == 1},
        {c for c in SCALARS if len(digits.pre_tokenize_str("a" + chr(c))) == 2},
    ]
    spaces_of_patterns = matching(r"\s")
    assert spaces_of_patterns == spaces, "\\s and char::is_whitespace differ"
    return [sum(1 << i for i, members in enumerate(sets) if c in members) for c in range(0x110000)]


def runs(values):
    start = 0
    for c in range(1, 0x110001):
        if c == 0x110000 or values[c] != values[start]:
            if values[start]:
                yield start, c - start, values[start]
            start = c


def hexadecimal(text):
    return " ".join(f"{ord(c):X}" for c in text)


def mappings(normalizer):
    for c in SCALARS:
        if 0xAC00 <= c < 0xD7A4:
            continue  # Hangul syllables are computed
        mapped = normalizer.normalize_str(chr(c))
        if mapped != chr(c):
            yield c, mapped


def compositions(decompositions):
    nfc = normalizers.NFC()
    for c, parts in decompositions:
        if nfc.normalize_str(parts) == chr(c):
            # The last character joins what those before it compose to.
            first = nfc.normalize_str(parts[:-1])
            if len(first) == 1 and len(parts) > 1:
                yield ord(first), ord(parts[-1]), c


def combining_classes():
    """Classes of today's Python, where the library too reorders the mark (its tables may be older)."""
    nfd = normalizers.NFD()
    for c in SCALARS:
        value = unicodedata.combining(chr(c))
        if value == 0:
            continue
        mark = chr(c)
        # U+0334 has class 1, U+0345 class 240.
        moves_left = nfd.normalize_str("a\u0345" + mark) == "a" + nfd.normalize_str(mark) + "\u0345"
        moves_right = nfd.normalize_str("a" + mark + "\u0334") == "a\u0334" + nfd.normalize_str(mark)
        if moves_left or moves_right:
            yield c, value


def scripts():
    """Numbers of the scripts that UnicodeScripts tells apart, 1 for those it takes for anything."""
    splitter = pre_tokenizers.UnicodeScripts()

    def same(a, b):
        return len(splitter.pre_tokenize_str(chr(a) + chr(b))) == 1

    values = [1] * 0x110000
    examples = []
    last = None
    for c in SCALARS:
        if splitter.pre_tokenize_str(chr(c)) == []:
            continue
        number = values[last] if last is not None and same(last, c) else None
        if number is None:
            number = next((n for n, example in examples if same(example, c)), None)
        if number is None:
            number = len(examples) + 2
            examples.append((number, c))
        values[c] = number
        last = c
    return [v if v > 1 else 0 for v in values]


def main():
    values = classes()
    nfd = list(mappings(normalizers.NFD()))
    canonical = dict(nfd)
    nfkd = [(c, m) for c, m in mappings(normalizers.NFKD()) if canonical.get(c) != m]
    lower = list(mappings(normalizers.Lowercase()))
    ccc = [0] * 0x110000
    for c, value in combining_classes():
        ccc[c] = value
    with open(sys.argv[1], "w") as out:
        out.write(
            "// Written by Tests/Fixtures/tokenizers_unicode.py from the answers of the Python package tokenizers "
            f"{tokenizers.__version__}. Don't edit.\n\n"
            "enum UnicodeData {\n"
        )

        def table(name, comment, lines):
            out.write(f"  /// {comment}\n  static let {name}: StaticString = \"\"\"\n")
            line = ""
            for item in lines:
                if len(line) + len(item) > 125:
                    out.write("    " + line + "\\\n")
                    line = ""
                line += item + ";"
            out.write("    " + line + "\n    \"\"\"\n\n")

        # Starts as distances from the end of the run before: small numbers.
        items, end = [], 0
        for start, length, value in runs(values):
            items.append(f"{start - end:X} {length:X} {value:X}")
            end = start + length
        table("classes", "Runs of code points: distance from the run before, length, bits of `ScalarClass`.", items)
        items, end = [], 0
        for start, length, value in runs(ccc):
            items.append(f"{start - end:X} {length:X} {value:X}")
            end = start + length
        table("combiningClasses", "Runs of code points: distance from the run before, length, canonical combining class.", items)

        items, end = [], 0
        for start, length, value in runs(scripts()):
            items.append(f"{start - end:X} {length:X} {value:X}")
            end = start + length
        table("scripts", "Runs of code points: distance from the run before, length, number of the script.", items)

        def deltas(pairs):
            last = 0
            for c, mapped in pairs:
                yield f"{c - last:X} {hexadecimal(mapped)}"
                last = c

        table("canonical", "Full canonical decompositions: distance from the code point before, the decomposition.", deltas(nfd))
        table("compatibility", "Full compatibility decompositions where they differ from the canonical ones.", deltas(nfkd))
        table("lowercase", "Lower case: distance from the code point before, the mapping.", deltas(lower))
        table("compositions", "First, second, composed.", (f"{a:X} {b:X} {c:X}" for a, b, c in compositions(nfd)))
        out.write("}\n")


main()
