"""Makes the tiny checkpoints in tests/fixtures/model/ and the logits in tests/goldens/model/ with Hugging Face transformers.

    python tests/oracles/model_goldens.py          (torch, transformers and safetensors; run in the repository's root)

A checkpoint is a directory as transformers' users download it. A golden is a pair of files: CASE.json says which
checkpoint, which config.json (in the spelling to be tested, and as transformers saves it), which tokens, and for which positions CASE.f32 holds logits,
[n_rows][vocab] little-endian floats, computed in float32 with eager attention. Each case that turns a feature on is compared with
the same weights without it, so that no golden can pass by ignoring the feature.
"""

import copy
import json
import pathlib
import shutil
import zlib

import numpy as np
import safetensors.torch
import torch
import transformers

FIXTURES = pathlib.Path("tests/fixtures/model")
GOLDENS = pathlib.Path("tests/goldens/model")

CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 160,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
}


def base(model_type, **more):
    class_name = CLASSES[model_type][1].__name__
    return {"architectures": [class_name], "model_type": model_type, **SMALL, "tie_word_embeddings": False, **more}


# name: (config, stored dtype, what is left out of the file, number of shards)
CHECKPOINTS = {
    "llama-bf16": (base("llama", torch_dtype="bfloat16"), torch.bfloat16, [], 1),
    "llama-bias-f32": (
        base("llama", torch_dtype="float32", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        torch.float32, ["lm_head.weight"], 1),
    "llama-head-f16": (
        base("llama", torch_dtype="float16", tie_word_embeddings=True), torch.float16, ["model.embed_tokens.weight"], 1),
    "mistral-bf16": (base("mistral", dtype="bfloat16", head_dim=12, sliding_window=None), torch.bfloat16, [], 3),
    "mistral-24-f16": (base("mistral", torch_dtype="float16", head_dim=24, sliding_window=None), torch.float16, [], 1),
    "qwen2-f16": (
        base("qwen2", torch_dtype="float16", num_hidden_layers=3, use_sliding_window=False, sliding_window=8,
             max_window_layers=3),
        torch.float16, [], 1),
    "qwen3-bf16": (
        base("qwen3", dtype="bfloat16", head_dim=16, tie_word_embeddings=True), torch.bfloat16, ["lm_head.weight"], 1),
    "qwen3-bias-f32": (
        base("qwen3", head_dim=10, attention_bias=True, num_key_value_heads=1, num_hidden_layers=1),
        torch.float32, [], 1),
}


def with_fields(checkpoint, **fields):
    config = {**CHECKPOINTS[checkpoint][0], **fields}
    return {key: value for key, value in config.items() if value is not ...}


# name: (checkpoint, config.json, the config without the feature under test or None, number of tokens)
THETA = {"rope_theta": 500.0}
CASES = {
    "llama": ("llama-bf16", with_fields("llama-bf16", rope_theta=500.0, rope_scaling=None), None, 80),
    "llama-rope-parameters": (
        "llama-bf16",
        with_fields("llama-bf16", rope_parameters={"rope_type": "default", "rope_theta": 300.0}), {}, 80),
    "llama-linear": (
        "llama-bf16", with_fields("llama-bf16", **THETA, rope_scaling={"type": "linear", "factor": 2.5}), THETA, 80),
    "llama-llama3": (
        "llama-bf16",
        with_fields("llama-bf16", **THETA, rope_scaling={
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
            "rope_type": "llama3"}), THETA, 80),
    "llama-yarn": (
        "llama-bf16",
        with_fields("llama-bf16", **THETA, rope_scaling={
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}), THETA, 80),
    "llama-yarn-mscale": (
        "llama-bf16",
        with_fields("llama-bf16", rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 5.0, "original_max_position_embeddings": 32,
            "beta_fast": 20.0, "beta_slow": 2.0, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}),
        {"rope_parameters": {
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 5.0, "original_max_position_embeddings": 32}}, 80),
    "llama-yarn-attention-factor": (
        "llama-bf16",
        with_fields("llama-bf16", **THETA, rope_scaling={
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40, "attention_factor": 1.5}),
        {**THETA, "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 40}}, 80),
    "llama-dynamic": (
        "llama-bf16",
        with_fields("llama-bf16", **THETA, max_position_embeddings=24, rope_scaling={"type": "dynamic", "factor": 3.0}),
        THETA, 80),
    "llama-bias": (
        "llama-bias-f32", with_fields("llama-bias-f32"), None, 80),
    "llama-tied-head": ("llama-head-f16", with_fields("llama-head-f16"), None, 24),
    "mistral": ("mistral-bf16", with_fields("mistral-bf16"), None, 80),
    "mistral-window": ("mistral-bf16", with_fields("mistral-bf16", sliding_window=7), {}, 80),
    "mistral-window-blocks": ("mistral-bf16", with_fields("mistral-bf16", sliding_window=70), {}, 150),
    "mistral-24-window-blocks": ("mistral-24-f16", with_fields("mistral-24-f16", sliding_window=70), {}, 150),
    "qwen2": ("qwen2-f16", with_fields("qwen2-f16"), None, 80),
    "qwen2-window": (
        "qwen2-f16", with_fields("qwen2-f16", use_sliding_window=True, max_window_layers=1), {}, 80),
    "qwen2-layer-types": (
        "qwen2-f16",
        with_fields("qwen2-f16", use_sliding_window=True, max_window_layers=..., layer_types=[
            "sliding_attention", "full_attention", "sliding_attention"]),
        {"use_sliding_window": True, "max_window_layers": 1}, 80),
    "qwen2-dynamic": (
        "qwen2-f16",
        with_fields("qwen2-f16", rope_parameters={"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0},
                    max_position_embeddings=40),
        {"rope_theta": 1000.0, "max_position_embeddings": 40}, 70),
    "qwen3": ("qwen3-bf16", with_fields("qwen3-bf16"), None, 80),
    "qwen3-bias": ("qwen3-bias-f32", with_fields("qwen3-bias-f32"), None, 70),
}


def make_model(config):
    """A transformers model for a config.json, in float32, all weights random."""
    config_class, model_class = CLASSES[config["model_type"]]
    parsed = config_class.from_dict(copy.deepcopy(config))  # it writes into what it is given
    parsed._attn_implementation = "eager"
    return model_class(parsed).to(torch.float32).eval()


def make_weights(name):
    """State dict whose values the stored dtype holds exactly; large enough that every part of the model matters."""
    config, dtype, left_out, _ = CHECKPOINTS[name]
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weights = {}
    for key, tensor in sorted(make_model(config).state_dict().items()):
        value = torch.randn(tensor.shape, generator=generator)
        if key.endswith("norm.weight"):
            value = 1 + 0.2 * value
        elif key.endswith(".bias"):
            value = 0.5 * value
        elif "q_proj" in key or "k_proj" in key:
            value = value * 2 / tensor.shape[1] ** 0.5
        else:
            value = value / tensor.shape[1] ** 0.5
        weights[key] = value.to(dtype).to(torch.float32)
    if config["tie_word_embeddings"]:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def save_checkpoint(name, weights):
    config, dtype, left_out, n_shards = CHECKPOINTS[name]
    folder = FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stored = {key: value.to(dtype).contiguous().clone() for key, value in weights.items() if key not in left_out}
    if n_shards == 1:
        safetensors.torch.save_file(stored, folder / "model.safetensors", {"format": "pt"})
        return
    keys = sorted(stored)
    weight_map = {}
    for shard in range(n_shards):
        part = {key: stored[key] for key in keys[shard::n_shards]}
        file = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        safetensors.torch.save_file(part, folder / file, {"format": "pt"})
        weight_map.update({key: file for key in part})
    size = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


@torch.no_grad()
def run(config, weights, tokens):
    """[n_tokens][vocab] logits. Dynamic scaling one token at a time, as generation does it; else all at once."""
    model = make_model(config)
    model.load_state_dict(weights)
    rope = model.config.rope_parameters
    if rope["rope_type"] != "dynamic":
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    cache, rows = transformers.DynamicCache(config=model.config), []
    for token in tokens:
        out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        rows.append(out.logits[0, 0].numpy())
    return np.stack(rows)


def main():
    weights = {name: make_weights(name) for name in CHECKPOINTS}
    for name in CHECKPOINTS:
        save_checkpoint(name, weights[name])
    shutil.rmtree(GOLDENS, ignore_errors=True)
    GOLDENS.mkdir(parents=True)
    for name, (checkpoint, config, without, n_tokens) in CASES.items():
        generator = np.random.default_rng(zlib.crc32(name.encode()))
        tokens = generator.integers(0, config["vocab_size"], n_tokens).tolist()
        rows = sorted({0, 1, 7, 20, 31, 47, 63, 64, 65, n_tokens - 2, n_tokens - 1} & set(range(n_tokens)))
        logits = run(config, weights[checkpoint], tokens)
        if without is not None:
            bare = run(with_fields(checkpoint, **without), weights[checkpoint], tokens)
            difference = np.abs(bare - logits)[rows].max() / np.abs(logits).max()
            assert difference > 1e-2, f"{name}: the feature under test changes logits by {difference:.1e} only"
        saved = json.loads(make_model(config).config.to_json_string())  # as transformers would write it today
        golden = {"transformers": transformers.__version__, "weights": checkpoint, "config": config, "saved": saved,
                  "tokens": tokens, "rows": rows}
        (GOLDENS / f"{name}.json").write_text(json.dumps(golden) + "\n")
        logits[rows].astype("<f4").tofile(GOLDENS / f"{name}.f32")
        print(f"{name:32} {len(rows)} rows of {n_tokens}, largest logit {np.abs(logits).max():.2f}")


if __name__ == "__main__":
    main()
