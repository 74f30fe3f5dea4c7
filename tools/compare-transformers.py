#!/usr/bin/env python3
"""What transformers makes of the shape that perch bench measures: its generate() and its continuous batching, with random
weights on the same machine. For comparison alone: perch needs neither this script nor Python.

    tools/compare-transformers.py --config configs/shapes/Llama-3.1-8B --out compare.json

prefill      prompts a forward pass, tokens a second until each prompt has its first token
generate     a batch of prompts of one length; decoding is what a longer run takes more than one of a single token
continuous   generate_batch; decoding is measured while all requests decode, from the last first token to the first end, as
             perch bench does

Each case runs --repeats times or until its time is up; the JSON has every run and the median. A case that fails or that there
is no time for stands there with its reason. The exit code is 0 if at least one case was measured.
"""

import argparse
import dataclasses
import inspect
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    counts = lambda text: [int(n) for n in text.split(",") if n]
    parser.add_argument("--config", required=True, help="folder with a config.json")
    parser.add_argument("--out", default="-", help="file for the JSON (- = stdout)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=3.0, help="for everything, loading included")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="generated tokens")
    parser.add_argument("--generate", type=counts, default=[1, 64], help="batch sizes of generate()")
    parser.add_argument("--continuous", type=counts, default=[64, 256], help="requests at once of continuous batching")
    parser.add_argument("--prefill", type=counts, default=[1, 8], help="prompts at once")
    parser.add_argument("--prefill-prompt", type=int, default=2048, help="tokens of each of them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=["generate", "continuous"], help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# ---------------------------------------------------------------- the worker, a process that does nothing else


def build_model(args):
    """Random weights made on the device itself."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(args.config)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, args.dtype))
    try:
        with torch.device(args.device):
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def settings(tokens, eos):
    from transformers import GenerationConfig

    return GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=eos, pad_token_id=0)


class Timer:
    def __init__(self, device):
        import torch

        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def __call__(self, work):
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - start, result


def repeat(args, measure):
    """Runs of measure(): a dict of numbers each. The first warms up; it counts only if there is no time for another."""
    runs = [measure()]
    took = []
    for _ in range(args.repeats):
        if time.time() + 1.2 * (max(took) if took else 0.0) > args.deadline:
            break
        start = time.time()
        runs.append(measure())
        took.append(time.time() - start)
    return runs[1:] or runs, not runs[1:]


def prompts_of(args, model, n, length):
    import torch

    generator = torch.Generator().manual_seed(n)
    return torch.randint(3, model.config.vocab_size, (n, length), generator=generator)


def measure_prefill(args, model, timer, n):
    import torch

    ids = prompts_of(args, model, n, args.prefill_prompt).to(args.device)

    def run():
        with torch.inference_mode():
            seconds, _ = timer(lambda: model(ids, use_cache=True, logits_to_keep=1).logits.argmax(-1))
        return {"prefill_tokens_per_s": ids.numel() / seconds}

    return run


def measure_generate(args, model, timer, n):
    import torch

    ids = prompts_of(args, model, n, args.prompt).to(args.device)

    def tokens_in(tokens):
        with torch.inference_mode():
            seconds, out = timer(
                lambda: model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings(tokens, None))
            )
        if tuple(out.shape) != (n, args.prompt + tokens):
            raise RuntimeError(f"{tuple(out.shape)} tokens came back for {tokens} of {n}")
        return seconds

    def run():
        first = tokens_in(1)
        rest = tokens_in(1 + args.tokens) - first
        return {
            "prefill_tokens_per_s": ids.numel() / first,
            "decode_tokens_per_s": n * args.tokens / rest if rest > 0 else None,
            "whole_tokens_per_s": n * (1 + args.tokens) / (first + rest),
        }

    return run


def batching_options(args, model, n):
    """What generate_batch of this version of transformers takes. No search for attention kernels on the network; the cache is as
    large as it makes it on a GPU, and what is needed on the CPU, where it would take all of the machine's memory."""
    import transformers

    options = {"record_timestamps": True, "progress_bar": False}
    kind = getattr(transformers, "ContinuousBatchingConfig", None) or getattr(
        transformers.generation, "ContinuousBatchingConfig", None
    )
    if kind is not None:
        wanted = {"auto_switch_to_flash": False}
        if not args.device.startswith("cuda"):
            blocks = n * (-(-(args.prompt + args.tokens) // 32) + 1)
            wanted.update(page_size=32, num_blocks=blocks, max_batch_tokens=256, use_async_batching=False)
        known = {field.name for field in dataclasses.fields(kind)}
        options["continuous_batching_config"] = kind(**{name: wanted[name] for name in wanted if name in known})
    taken = inspect.signature(model.generate_batch).parameters
    return {name: value for name, value in options.items() if name in taken}


def all_decoding(results):
    """Tokens a second from the last first token to the first end; None where that is no time, or nobody kept the times."""
    times = [getattr(result, "timestamps", None) for result in results]
    if not all(times):
        return None
    start, end = max(t[0] for t in times), min(t[-1] for t in times)
    tokens = sum(sum(1 for at in t if start < at <= end) for t in times)
    return tokens / (end - start) if end > start and tokens > 0 else None


def first_tokens(results):
    """Seconds from the first request to the last first token."""
    times = [getattr(result, "timestamps", None) for result in results]
    made = [getattr(result, "created_time", None) for result in results]
    if not all(times) or not all(made):
        return None
    seconds = max(t[0] for t in times) - min(made)
    return seconds if seconds > 0 else None


def measure_continuous(args, model, timer, n):
    ids = prompts_of(args, model, n, args.prompt).tolist()
    options = batching_options(args, model, n)

    def run():
        seconds, out = timer(lambda: model.generate_batch(ids, generation_config=settings(args.tokens, -1), **options))
        results = list(out.values())
        made = sum(len(result.generated_tokens) for result in results)
        if len(results) != n or made != n * args.tokens:
            errors = {result.error for result in results if result.error}
            raise RuntimeError(f"{made} tokens of {n * args.tokens} in {len(results)} answers {errors or ''}")
        first = first_tokens(results)
        return {
            "prefill_tokens_per_s": n * args.prompt / first if first else None,
            "decode_tokens_per_s": all_decoding(results),
            "whole_tokens_per_s": made / seconds,
        }

    return run


def prepare_batching(model):
    """Early versions want the attention named."""
    try:
        from transformers.generation import ContinuousBatchingConfig  # noqa: F401
    except ImportError:
        model.set_attn_implementation("sdpa_paged")


def worker(args):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "device": args.device}
    if args.device.startswith("cuda"):
        about["gpu"] = torch.cuda.get_device_name()
    print(json.dumps({"about": about}), flush=True)
    start = time.time()
    model = build_model(args)
    about = {"parameters": sum(p.numel() for p in model.parameters()), f"loading_{args.worker}_s": time.time() - start}
    print(json.dumps({"about": about}), flush=True)
    timer = Timer(args.device)
    if args.worker == "generate":
        cases = [("prefill", measure_prefill, n, args.prefill_prompt, 0) for n in args.prefill]
        cases += [("generate", measure_generate, n, args.prompt, args.tokens) for n in args.generate]
    else:
        prepare_batching(model)
        cases = [("continuous", measure_continuous, n, args.prompt, args.tokens) for n in args.continuous]
    for what, make, n, prompt, tokens in cases:
        case = {"what": what, "batch": n, "prompt_tokens": prompt, "completion_tokens": tokens}
        print(json.dumps({"begin": case}), flush=True)
        try:
            runs, cold = repeat(args, make(args, model, timer, n))
            case["runs"] = runs
            case["warmed_up"] = not cold
            for name in runs[0]:
                values = [run[name] for run in runs if run[name] is not None]
                case[name] = statistics.median(values) if values else None
        except Exception as error:  # whatever it is: the other cases go on
            case["failed"] = f"{type(error).__name__}: {error}"[:500]
        print(json.dumps({"case": case}), flush=True)
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------- the one who waits


def run_worker(args, kind, deadline, report):
    """A process of its own, so that one that hangs or dies takes nothing along."""
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--worker", kind, "--deadline", str(deadline)]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONUNBUFFERED="1")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    lines = queue.Queue()

    def read():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    running = None
    while True:
        try:
            line = lines.get(timeout=max(0.1, deadline + 5.0 - time.time()))
        except queue.Empty:
            process.kill()
            reason = "out of time"
            break
        if line is None:
            code = process.wait()
            reason = f"the process ended with exit code {code}" if code else None
            break
        try:
            message = json.loads(line)
        except ValueError:
            sys.stderr.write(line)  # something that a library printed
            continue
        if "about" in message:
            report["about"].update(message["about"])
        elif "begin" in message:
            running = message["begin"]
        else:
            report["cases"].append(message["case"])
            running = None
    process.wait()
    if running is not None:
        report["cases"].append(dict(running, failed=reason))
    elif reason is not None:
        report["cases"].append({"what": kind, "failed": reason})


def main():
    args = parse(sys.argv[1:])
    if args.worker:
        worker(args)
        return 0
    start = time.time()
    report = {"about": {"config": args.config, "dtype": args.dtype}, "cases": []}
    kinds = [kind for kind in ("generate", "continuous") if getattr(args, kind) or (kind == "generate" and args.prefill)]
    for i, kind in enumerate(kinds):
        left = args.minutes * 60 - (time.time() - start)
        run_worker(args, kind, time.time() + left / (len(kinds) - i), report)
    report["seconds"] = time.time() - start
    text = json.dumps(report, indent=1)
    if args.out == "-":
        print(text)
    else:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    show = lambda value: f"{value:.0f}" if value is not None else "-"
    for case in report["cases"]:
        figures = (
            case.get("failed")
            or f"prefill {show(case.get('prefill_tokens_per_s'))}, decode {show(case.get('decode_tokens_per_s'))} tokens/s"
        )
        print(f"{case['what']} {case.get('batch', '')}: {figures}", file=sys.stderr)
    return 0 if any("failed" not in case for case in report["cases"]) else 1


if __name__ == "__main__":
    sys.exit(main())
