"""Measures a trained checkpoint on fresh conversations, with its KV whole and
with parts of it lost, and compares it with Hugging Face transformers.

    python tools/train/evaluate.py [--model FOLDER] [--transformers]

With --transformers: the logits agree, and generating the demo's conversations
turn by turn with a KV cache gives the answers of conversations.jsonl."""

import argparse
import json
from pathlib import Path

import torch

import corpus
import train

FRESH_SEED = 1000


def accuracy(model, enc, n):
    fresh = train.fresh_recall(FRESH_SEED, n, model.cfg.max_position_embeddings, enc)
    for part in (0.0, 0.1, 0.25, 0.5):
        shares, total = train.recall_accuracy(model, enc, fresh, part)
        print(f"first {part:.0%} of the KV lost: right answers to {total['ask']} fact questions "
              f"{shares['ask']:.4f}")
        if part == 0.0:
            for name in shares:
                print(f"    {name:16} {shares[name]:.4f} of {total[name]}")


def against_transformers(folder, model, enc, demo):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print(f"transformers loads {type(hf).__name__}, {type(tok).__name__}")
    worst = 0.0
    for conversation in demo:
        messages = [{"role": role, "content": turn[role]}
                    for turn in conversation["turns"] for role in ("user", "assistant")]
        text = tok.apply_chat_template(messages, tokenize=False)
        turns = [corpus.Turn(t["user"], t["assistant"]) for t in conversation["turns"]]
        assert text == corpus.render(turns)
        ids = tok(text).input_ids
        assert ids == enc.conversation(turns)[0]
        with torch.no_grad():
            ours = model.logits(model(torch.tensor([ids])))
            theirs = hf(torch.tensor([ids])).logits
        worst = max(worst, (ours - theirs).abs().max().item())
    print(f"largest difference of a logit: {worst:.2e}")
    for dtype in (torch.float32, torch.bfloat16):
        hf = hf.to(dtype)
        n_same = n = 0
        for conversation in demo:
            past, ids = None, []
            for turn in conversation["turns"]:
                ids += tok(corpus.user_text(corpus.Turn(turn["user"], ""))).input_ids
                out = hf.generate(torch.tensor([ids]), past_key_values=past, max_new_tokens=48,
                                  do_sample=False, return_dict_in_generate=True)
                past = out.past_key_values
                answer = tok.decode(out.sequences[0, len(ids):], skip_special_tokens=True)
                ids = out.sequences[0].tolist() + tok("\n").input_ids
                n += 1
                n_same += answer == turn["assistant"]
        print(f"transformers, {dtype}, greedy: {n_same} of {n} answers are those of the file")


def main():
    here = Path(__file__).resolve().parent
    args = argparse.ArgumentParser(description="Measures the demo's model.")
    args.add_argument("--model", type=Path, default=here / "model")
    args.add_argument("--conversations", type=int, default=200)
    args.add_argument("--demo", type=Path,
                      default=here.parent / "demo-data" / "conversations.jsonl")
    args.add_argument("--transformers", action="store_true")
    args = args.parse_args()

    torch.set_num_threads(2)
    model, tok = train.load(args.model)
    enc = train.Encoder(tok)
    if args.conversations:
        accuracy(model, enc, args.conversations)
    if args.transformers:
        demo = [json.loads(line) for line in args.demo.read_text().splitlines()]
        against_transformers(args.model, model, enc, demo)


if __name__ == "__main__":
    main()
