"""Trains the demo's model and writes it to tools/train/model as a Hugging Face
checkpoint. Needs torch, tokenizers and safetensors; runs on two CPU cores.

    python tools/train/train.py [--out FOLDER]

Each row of a batch is one conversation from its first token on, cut off at the
stage's length. The loss is taken on the assistant's tokens only: these are the
ones that follow from the conversation. There are two runs of the optimizer: a
trunk on a cosine that is left early, and from its rounded weights a cool-down
that takes the learning rate straight to nothing."""

import argparse
import json
import math
import random
import time
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import corpus
import tokenizer
from llama import Config, Llama

SEED = 20
# (steps, rows, tokens per row): short conversations until copying has been
# learned, then the length at which the model is used.
TRUNK = [(400, 32, 256), (400, 16, 512), (600, 8, 1024)]
TRUNK_LR, TRUNK_WARMUP, TRUNK_HORIZON = 3e-3, 100, 2300
COOL_DOWN = [(200, 8, 1024)]
COOL_LR, COOL_WARMUP = 1e-3, 10
EVAL_EVERY = 200


class Encoder:
    """Turns to token ids; a turn's text is encoded once and remembered."""

    def __init__(self, tok):
        self.tok = tok
        self.newline = tok.encode("\n").ids
        self.text = lru_cache(maxsize=100000)(lambda s: tok.encode(s).ids)

    def conversation(self, turns):
        """-> ids, and per id whether the assistant said it, and turn index."""
        ids, said, turn_of = [], [], []
        for i, turn in enumerate(turns):
            user = self.text(corpus.user_text(turn))
            reply = self.text(corpus.assistant_text(turn))
            ids += user + reply + self.newline
            said += [0] * len(user) + [1] * len(reply) + [0]
            turn_of += [i] * (len(user) + len(reply) + 1)
        return ids, said, turn_of


def training_batch(rng, enc, rows, length):
    """-> inputs [rows, length], targets [rows, length] (-100: no loss)."""
    x = torch.empty(rows, length, dtype=torch.long)
    y = torch.empty(rows, length, dtype=torch.long)
    for r in range(rows):
        ids, said = [], []
        while len(ids) <= length:
            ids, said, _ = enc.conversation(corpus.sample_training(rng, length // 19))
        x[r] = torch.tensor(ids[:length])
        y[r] = torch.tensor([t if s else -100 for t, s in zip(ids[1:length + 1], said[1:length + 1])])
    return x, y


@torch.no_grad()
def check_turns(model, enc, turns, cut=0):
    """Feeds the conversation (which equals greedy generation as long as every
    answer is right) -> per turn (all tokens right, smallest gap between the
    right token's logit and the best other one). `cut` tokens at the start are
    hidden from everything after them, as if their KV were lost."""
    ids, said, turn_of = enc.conversation(turns)
    n = len(ids)
    mask = None
    if cut:
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        mask[cut:, :cut] = False
    at = [i for i in range(n) if said[i]]
    hidden = model(torch.tensor([ids]), mask)[0, [i - 1 for i in at]]
    logits = model.logits(hidden)
    right = torch.tensor([ids[i] for i in at])
    best = logits.gather(1, right[:, None])[:, 0]
    gap = best - logits.scatter(1, right[:, None], -torch.inf).max(dim=1).values
    result = [[True, math.inf] for _ in turns]
    for i, g in zip(at, gap.tolist()):
        entry = result[turn_of[i]]
        entry[0] &= g > 0
        entry[1] = min(entry[1], g)
    return result


def fresh_recall(seed, n, max_tokens, enc):
    """`n` conversations of at most `max_tokens`, the same for the same seed."""
    rng = random.Random(seed)
    found = []
    while len(found) < n:
        turns = corpus.recall(rng, n_facts=rng.randint(8, 12), n_updates=rng.randint(0, 3),
                              n_gap=rng.randint(10, 14))
        if len(enc.conversation(turns)[0]) <= max_tokens:
            found.append(turns)
    return found


def recall_accuracy(model, enc, conversations, cut_part=0.0):
    """-> share of right answers by class of turn; `ask` counts questions whose
    answer was last mentioned at least ten turns before."""
    right, total = {}, {}
    for turns in conversations:
        n = len(enc.conversation(turns)[0])
        for turn, (ok, _) in zip(turns, check_turns(model, enc, turns, int(n * cut_part))):
            names = [turn.act]
            if turn.act == "ask":
                names = ["ask"] if turn.distance >= 10 else ["ask_near"]
                names.append("ask:" + turn.kind)
                if turn.updated:
                    names.append("ask_updated")
            for name in names:
                right[name] = right.get(name, 0) + ok
                total[name] = total.get(name, 0) + 1
    return {k: right[k] / total[k] for k in sorted(total)}, total


def trunk_rate(step, _):
    """Cosine from TRUNK_LR to 2 % of it at TRUNK_HORIZON, past the last step."""
    if step < TRUNK_WARMUP:
        return TRUNK_LR * (step + 1) / TRUNK_WARMUP
    done = (step - TRUNK_WARMUP) / (TRUNK_HORIZON - TRUNK_WARMUP)
    return TRUNK_LR * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def cool_rate(step, n_steps):
    """Straight down from COOL_LR to nothing."""
    return COOL_LR * min((step + 1) / COOL_WARMUP, 1 - step / n_steps)


def round_to_bf16(model):
    """Rounds every weight to the nearest BF16 value, in place, kept as F32."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.to(torch.bfloat16).float())


def save(model, tok, folder):
    """Writes a checkpoint that Hugging Face transformers loads as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = model.cfg
    eos = tok.token_to_id("<|im_end|>")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": eos,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "hidden_size": cfg.hidden_size,
        "initializer_range": 0.05,
        "intermediate_size": cfg.intermediate_size,
        "max_position_embeddings": cfg.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": cfg.num_attention_heads,
        "num_hidden_layers": cfg.num_hidden_layers,
        "num_key_value_heads": cfg.num_key_value_heads,
        "pad_token_id": tok.token_to_id("<|endoftext|>"),
        "rms_norm_eps": cfg.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": cfg.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": cfg.vocab_size,
    }
    generation = {"do_sample": False, "eos_token_id": eos,
                  "pad_token_id": config["pad_token_id"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tokenizer.save(tok, folder, cfg.max_position_embeddings)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def report(model, enc, conversations):
    shares, _ = recall_accuracy(model, enc, conversations)
    return " ".join(f"{k} {v:.3f}" for k, v in shares.items())


def load(folder):
    """-> the checkpoint in `folder`, its weights in F32, and its tokenizer."""
    spec = json.loads((folder / "config.json").read_text())
    model = Llama(Config(**{k: spec[k] for k in Config.__dataclass_fields__}))
    weights = load_file(str(folder / "model.safetensors"))
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def fit(model, tok, stages, rate, rng, out):
    """Runs `stages` with the learning rate `rate(step, n_steps)`; saves to `out`
    every EVAL_EVERY steps and at the end."""
    enc = Encoder(tok)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.05},
                             {"params": vectors, "weight_decay": 0.0}],
                            betas=(0.9, 0.98))
    held_out = fresh_recall(1, 24, model.cfg.max_position_embeddings, enc)
    n_steps = sum(s[0] for s in stages)
    start, step, losses = time.monotonic(), 0, []
    for n, rows, length in stages:
        for _ in range(n):
            x, y = training_batch(rng, enc, rows, length)
            for group in opt.param_groups:
                group["lr"] = rate(step, n_steps)
            keep = y >= 0
            loss = F.cross_entropy(model.logits(model(x)[keep]), y[keep])
            opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            losses.append(loss.item())
            step += 1
            if step % 25 == 0:
                mean = sum(losses[-25:]) / 25
                print(f"step {step} [{rows}x{length}] loss {mean:.4f} "
                      f"{time.monotonic() - start:.0f} s", flush=True)
            if step % EVAL_EVERY == 0 or step == n_steps:
                save(model, tok, out)
                print("  held out:", report(model, enc, held_out), flush=True)


def main():
    here = Path(__file__).resolve().parent
    args = argparse.ArgumentParser(description="Trains the demo's model.")
    args.add_argument("--out", type=Path, default=here / "model")
    args.add_argument("--threads", type=int, default=2)
    args = args.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    cfg = Config()
    model, tok = Llama(cfg), tokenizer.build(cfg.vocab_size)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    fit(model, tok, TRUNK, trunk_rate, random.Random(SEED), args.out)
    round_to_bf16(model)
    fit(model, tok, COOL_DOWN, cool_rate, random.Random(SEED + 1), args.out)
    round_to_bf16(model)
    save(model, tok, args.out)
    enc = Encoder(tok)
    fresh = fresh_recall(2, 100, model.cfg.max_position_embeddings, enc)
    print("rounded:", report(model, enc, fresh))


if __name__ == "__main__":
    main()
