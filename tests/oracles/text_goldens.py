#!/usr/bin/env python3
"""Makes tests/fixtures/text and tests/goldens/text with the `tokenizers` library (0.23).

Each fixture is a small tokenizer.json that uses one family of features, trained on the text below. Its golden
lists texts with the ids that the library gives for them, with and without special tokens in the text and with and
without BOS, and lists of ids with the text that the library decodes them to.

    python3 tests/oracles/text_goldens.py

Added tokens with "normalized": true are decoded here as if it were false: release 0.23 writes the normalized text of
such a token and does not skip it even if it is special, which earlier releases and perch do.
"""

import json
import random
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

TESTS = Path(__file__).resolve().parent.parent
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")

CORPUS = """The perch waits below the landing stage where the water is slow and the light is green.
It's a patient fish: it doesn't hurry, it won't be hurried, and it'll take what comes within its reach.
Perch hunt in shoals. When one of them has found the fry, the others aren't far; they've learned to listen.
In 1998, 12,345 of them were counted in the lake; in 2007 only 678, and by 2024 more than 30,000.
She said: "You're sure that we'd see them here?" He was sure. He'd seen them here before, hadn't he?
Der Barsch steht still über dem Kies, die Flossen gespreizt; er wartet, bis der Schwarm näher kommt.
La perche reste immobile près de la berge; elle ne se presse pas, et pourtant rien ne lui échappe.
Окунь стоит у берега и ждёт. 鲈鱼在浅水里等待。スズキは静かに待っている。 
for (int i = 0; i < n; i++) {\n    shoal[i] = perch_new(i);\n}\n\n\treturn shoal;
""" * 4

TEXTS = [
    "", " ", "  ", "\n", "\t\n  \n", "perch", " perch", "  perch  ", "The perch's reach.", "THEY'LL WAIT'S",
    "It's 12,345 or 1998.", "x=1234567;", "über näher échappe", "u\u0308ber e\u0301chappe", "ﬁsh ½ ² Ⅷ ａｂ",
    "Окунь ждёт", "鲈鱼在浅水里等待。", "🐟🐠 fish 👩‍👩‍👧", "नमस्ते", "    return shoal;\n\n\n}", "a\r\nb\r\n",
    "\u00a0\u3000x\u2028y",
    "wait, wait...  wait!?!", "<s>The perch</s>", "The <s> perch </s> waits", "<|begin_of_text|>x<|eot_id|>\n y",
    "<mask>", "a <mask> b", "a<mask>b", "a  <mask>  b <mask>", "shoal shoals reshoal shoal!", "KEEP  keep Keep",
    "Zander zander", "\ufeffx", "▁▁x ▁y", "<0x41>", "İstanbul ǅ ß", "<unk>",
]


def added(id, content, **flags):
    token = dict(id=id, content=content, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
    token.update(flags)
    return token


def trained(model, pre_tokenizer, latin=False, **trainer):
    """latin: the model learns no other letters, so that they are unknown to it."""
    tok = Tokenizer(model)
    tok.pre_tokenizer = pre_tokenizer
    lines = [line for line in CORPUS.split("\n") if not latin or all(ord(c) < 0x100 for c in line)]
    tok.train_from_iterator(lines, trainers.BpeTrainer(show_progress=False, **trainer))
    doc = json.loads(tok.to_str())
    doc["added_tokens"] = []
    return doc


def byte_level(vocab_size):
    split = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return trained(models.BPE(), split, vocab_size=vocab_size,
                   initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))


def append_tokens(doc, tokens):
    """Adds added tokens, with ids behind the vocabulary where they are not in it."""
    vocab = doc["model"]["vocab"]
    last = max(vocab.values())
    for token in tokens:
        if token["content"] in vocab:
            token["id"] = vocab[token["content"]]
        else:
            last += 1
            token["id"] = last
        doc["added_tokens"].append(token)
    return {t["content"]: t["id"] for t in doc["added_tokens"]}


def template(before, ids, behind=()):
    pieces = [{"SpecialToken": {"id": t, "type_id": 0}} for t in before]
    pieces.append({"Sequence": {"id": "A", "type_id": 0}})
    pieces += [{"SpecialToken": {"id": t, "type_id": 0}} for t in behind]
    return {"type": "TemplateProcessing", "single": pieces,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in [*before, *behind]}}


BYTE_LEVEL = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)


def llama3():
    """Split by Llama 3's expression, ignore_merges with words that no rule reaches, rules as pairs, a sequence of
    post-processors."""
    doc = byte_level(380)
    doc["model"]["ignore_merges"] = True
    merges = doc["model"]["merges"]
    doc["model"]["merges"] = [m for i, m in enumerate(merges) if i < 60 or i % 3]
    vocab = doc["model"]["vocab"]
    reachable = set("".join(m) for m in doc["model"]["merges"])
    doc["model"]["merges"] = [m for m in doc["model"]["merges"]
                              if all(len(s) == 1 or s in reachable for s in m) and all(s in vocab for s in m)]
    ids = append_tokens(doc, [added(0, t, special=True) for t in (
        "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")])
    doc["post_processor"] = {"type": "Sequence", "processors": [
        dict(BYTE_LEVEL, use_regex=True), template(["<|begin_of_text|>"], ids)]}
    doc["decoder"] = dict(BYTE_LEVEL, use_regex=True)
    return doc


def llama2():
    """SentencePiece's ways: no words, a space is U+2581, bytes for what is unknown, special tokens as given."""
    doc = trained(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), pre_tokenizers.Metaspace(),
                  latin=True, vocab_size=520,
                  special_tokens=["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)])
    doc["pre_tokenizer"] = None
    doc["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    doc["model"]["merges"] = [a + " " + b for a, b in doc["model"]["merges"]]
    ids = append_tokens(doc, [added(0, t, special=True) for t in ("<unk>", "<s>", "</s>")])
    doc["post_processor"] = template(["<s>"], ids, ["</s>"])
    doc["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return doc


def metaspace():
    """Metaspace before the first word only; unknown characters one by one; added tokens with all their flags."""
    doc = trained(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(), latin=True, vocab_size=300,
                  special_tokens=["<unk>"])
    doc["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    doc["normalizer"] = {"type": "Lowercase"}
    append_tokens(doc, [added(0, "<unk>", special=True), added(0, "<s>", special=True, normalized=True),
                        added(0, "</s>", special=True, rstrip=True), added(0, "shoal", single_word=True),
                        added(0, "<mask>", special=True, lstrip=True, rstrip=True), added(0, "KEEP"),
                        added(0, "Zander", normalized=True)])
    doc["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    return doc


def gpt2():
    """ByteLevel with its own expression and a space put first."""
    doc = byte_level(330)
    doc["normalizer"] = {"type": "NFC"}
    doc["pre_tokenizer"] = dict(BYTE_LEVEL, add_prefix_space=True, use_regex=True)
    doc["post_processor"] = dict(BYTE_LEVEL, use_regex=True)
    doc["decoder"] = dict(BYTE_LEVEL, use_regex=True)
    append_tokens(doc, [added(0, "<mask>", lstrip=True), added(0, "  ", normalized=True)])
    return doc


def splits():
    """All behaviors of Split, Digits, Punctuation, expressions in normalizer and decoder, NFKC, fused unknowns."""
    doc = trained(models.BPE(unk_token="?", fuse_unk=True), pre_tokenizers.WhitespaceSplit(), vocab_size=260,
                  special_tokens=["?"])
    split = lambda pattern, behavior, invert=False: {
        "type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
    doc["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}]}
    doc["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        split({"String": " "}, "MergedWithNext"), split({"Regex": r"\p{Han}+"}, "Isolated"),
        split({"Regex": r"[^\s\d]+"}, "Contiguous", True), split({"String": "ss"}, "MergedWithPrevious"),
        {"type": "Digits", "individual_digits": True}, {"type": "Punctuation"}, split({"String": "|"}, "Removed")]}
    doc["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"Regex": "[aeiou]n"}, "content": "N"}, {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": "er"}, "content": "ER"},
        {"type": "Strip", "content": " ", "start": 2, "stop": 0}]}
    return doc


def bare():
    """No normalizer, pre-tokenizer, post-processor or decoder; no unknown token: what has no token is dropped."""
    doc = trained(models.BPE(), pre_tokenizers.Digits(individual_digits=True), latin=True,
                  vocab_size=200)
    doc["pre_tokenizer"] = None
    return doc


def golden(doc, rng):
    tok = Tokenizer.from_str(json.dumps(doc))
    plain = json.loads(json.dumps(doc))
    for token in plain["added_tokens"]:
        token["normalized"] = False
    decoder = Tokenizer.from_str(json.dumps(plain))
    encode, lists = [], []
    for text in TEXTS:
        entry = {"text": text}
        for key, special in (("ids", False), ("special_ids", True)):
            tok.encode_special_tokens = not special
            entry[key] = tok.encode(text, add_special_tokens=False).ids
            lists.append(entry[key])
        entry["around_ids"] = tok.encode(text, add_special_tokens=True).ids
        encode.append(entry)
    known = sorted(tok.get_vocab().values())
    lists += [[rng.choice(known) for _ in range(rng.randrange(1, 10))] for _ in range(60)]
    bytes_ = sorted(i for t, i in tok.get_vocab().items() if t.startswith("<0x"))
    if bytes_:
        lists += [[rng.choice(bytes_ + [known[-1]]) for _ in range(rng.randrange(1, 7))] for _ in range(30)]
    decode = []
    for ids in lists:
        entry = {"ids": ids, "text": decoder.decode(ids, skip_special_tokens=True),
                 "special_text": decoder.decode(ids, skip_special_tokens=False)}
        # A JSON text of ours has no U+0000.
        if entry not in decode and "\0" not in entry["special_text"]:
            decode.append(entry)
    return {"encode": encode, "decode": decode}


def write(path, doc):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = json.dumps(doc, ensure_ascii=True, separators=(",", ":"))
    path.write_text(rows.replace('},{', '},\n{').replace('"model":', '\n"model":') + "\n")


def main():
    rng = random.Random(7)
    for make in (llama3, llama2, metaspace, gpt2, splits, bare):
        doc = make()
        write(TESTS / "fixtures/text" / f"{make.__name__}.json", doc)
        write(TESTS / "goldens/text" / f"{make.__name__}.json", golden(doc, rng))


if __name__ == "__main__":
    main()
