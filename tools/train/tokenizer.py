"""Builds the model's tokenizer: byte-level BPE in the form of Qwen2's
tokenizer.json (Split by a regular expression, then ByteLevel), with its three
ChatML tokens at the end of the vocabulary. Merges are learned from the words of
the corpus, each counted by the square root of its frequency: a name that is
rare in the text still becomes one token or two."""

import json
import math
import random
from collections import Counter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import trainers

import corpus

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")

CHAT_TEMPLATE = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                 "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def build(vocab_size):
    byte_level = dict(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(**byte_level)])
    tok.decoder = decoders.ByteLevel(**byte_level)
    tok.post_processor = processors.ByteLevel(**byte_level)

    rng = random.Random(1)
    words = Counter({"user": 10000, "assistant": 10000, "system": 1000})
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    for _ in range(3000):
        for turn in corpus.mixed(rng, 30):
            for text in (turn.user, turn.assistant):
                words.update(w for w, _ in split.pre_tokenize_str(text))
    for pool in (k.pool for k in corpus.KINDS if k.pool):
        words.update(" " + w for w in pool)
    def repeated():
        for word, n in sorted(words.items()):
            yield [word] * max(1, round(math.sqrt(n)))
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - len(SPECIAL), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tok.train_from_iterator(repeated(), trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    assert tok.get_vocab_size() == vocab_size
    return tok


def save(tok, folder, max_length):
    tok.save(str(folder / "tokenizer.json"))
    first = tok.get_vocab_size() - len(SPECIAL)
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(first + i): {"content": s, "lstrip": False, "normalized": False, "rstrip": False,
                             "single_word": False, "special": True}
            for i, s in enumerate(SPECIAL)},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": max_length,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
