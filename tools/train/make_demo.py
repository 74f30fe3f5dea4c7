"""Writes tools/demo-data/conversations.jsonl: conversations that the trained
model answers without a mistake, every answer token ahead of the runner-up by
more than MIN_GAP in its logit, so that no answer hinges on rounding.

    python tools/train/make_demo.py

Every question comes at least ten turns after the value was last mentioned."""

import argparse
import json
import random
from pathlib import Path

import torch

import corpus
import train

SEED = 4
N_CONVERSATIONS = 16
MIN_TOKENS, MAX_TOKENS = 700, 1000
MIN_GAP = 2.0


def candidate(rng):
    return corpus.recall(rng, n_facts=rng.randint(9, 12), n_updates=rng.randint(1, 4),
                         n_gap=rng.randint(10, 13), n_unknown=1, p_talk=0.2)


def reads_well(turns):
    """Brothers and sisters draw on one pool of names, which is right for a test
    of memory; in the demo a brother shall not be called Marta."""
    return all((t.value in corpus.WOMEN) == (t.kind == "sister")
               for t in turns if t.kind in ("sister", "brother") and t.value)


def smallest_gap(model, enc, turns):
    """The smallest lead of an answer token; negative if an answer is wrong."""
    return min(gap for _, gap in train.check_turns(model, enc, turns))


def as_json(name, turns):
    return {"name": name,
            "turns": [{"user": t.user, "assistant": t.assistant,
                       "check": t.value if t.act == "ask" else None} for t in turns]}


def main():
    here = Path(__file__).resolve().parent
    args = argparse.ArgumentParser(description="Writes the demo's conversations.")
    args.add_argument("--model", type=Path, default=here / "model")
    args.add_argument("--out", type=Path, default=here.parent / "demo-data" / "conversations.jsonl")
    args = args.parse_args()

    torch.set_num_threads(2)
    model, tok = train.load(args.model)
    enc = train.Encoder(tok)
    rng = random.Random(SEED)
    chosen, gaps, sizes, tried = [], [], [], 0
    n_asks = n_turns = n_right_cut = 0
    while len(chosen) < N_CONVERSATIONS:
        turns = candidate(rng)
        size = len(enc.conversation(turns)[0])
        if not (MIN_TOKENS <= size <= MAX_TOKENS and reads_well(turns)):
            continue
        tried += 1
        gap = smallest_gap(model, enc, turns)
        if gap <= MIN_GAP:
            continue
        assert all(t.distance >= 10 for t in turns if t.act == "ask")
        chosen.append(as_json(f"conversation-{len(chosen) + 1:02d}", turns))
        gaps.append(gap)
        sizes.append(size)
        n_turns += len(turns)
        n_asks += sum(t.act == "ask" for t in turns)
        cut = train.check_turns(model, enc, turns, size // 2)
        n_right_cut += sum(ok for t, (ok, _) in zip(turns, cut) if t.act == "ask")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(c) + "\n" for c in chosen))
    print(f"{len(chosen)} conversations of {tried} tried, {n_turns} turns, {n_asks} fact questions, "
          f"{min(sizes)} to {max(sizes)} tokens, smallest gap {min(gaps):.2f}; "
          f"without the KV of the first half {n_right_cut} of {n_asks} are right")


if __name__ == "__main__":
    main()
