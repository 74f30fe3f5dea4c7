#!/usr/bin/env bash
# Flags, files, keys: what perch accepts, how it refuses, and what it says about itself. No model is loaded.
. "$(dirname "$0")/lib.sh"
commands="generate chat batch score tokenize plan bench top"

t "perch --help lists the commands and perch --version says the version"
run "$perch" --help
same "the exit code" 0 "$code"
for c in $commands; do
    has "the help" "$c" "$out"
done
run "$perch" --version
same "the exit code" 0 "$code"
has "the version" "perch $(sed -n 's/^#define PERCH_VERSION_MAJOR //p' include/perch/perch.h)." "$out"

t "every command has --help, and it names --model, --config, --json and section.key=value"
for c in $commands; do
    run "$perch" "$c" --help
    same "the exit code of perch $c --help" 0 "$code"
    same "stderr of perch $c --help" "" "$err"
    for part in "usage: perch $c" --model --config --json --print-config "section.key=value"; do
        has "perch $c --help" "$part" "$out"
    done
    run "$perch" "$c" -h
    same "the exit code of perch $c -h" 0 "$code"
done

t "--keys lists every key with its default"
run "$perch" --keys
same "the exit code" 0 "$code"
for key in engine.session_len model.path cache.cache_chunk_size sampling.top_p parallel.threads bench.zipf_exponent; do
    has "the list" "$key" "$out"
done

t "docs/cli.md tells of every command, flag and [bench] key"
manual=$(cat docs/cli.md)
for c in $commands; do
    has "docs/cli.md" "## perch $c" "$manual"
    for flag in $("$perch" "$c" --help | sed -n 's/^  \(--*[a-z-]*\) .*/\1/p'); do
        has "docs/cli.md, for perch $c," "$flag" "$manual"
    done
done
for key in $("$perch" --keys | sed -n 's/^bench\.\([a-z_]*\) .*/\1/p'); do
    has "docs/cli.md" "| \`$key\` |" "$manual"
done

t "no command, or an unknown one, is one line and exit code 2"
run "$perch"
same "the exit code" 2 "$code"
same "the number of lines" 1 "$(wc -l <"$tmp/err")"
for word in sing --sing; do
    run "$perch" "$word"
    same "the exit code of perch $word" 2 "$code"
    has "the error of perch $word" "'$word'" "$err"
done

t "a wrong flag, value or key is one line that names it and exit code 2, for every command"
for c in $commands; do
    wrong "--sing" "$c" --sing
    wrong "-x" "$c" -x
    wrong "--model needs a value" "$c" --model
    wrong "--help takes no value" "$c" --help=yes
    wrong "/no/such.ini" "$c" --config /no/such.ini
    wrong "[engine] sing: unknown key" "$c" --model configs/shapes/tiny engine.sing=1
    wrong "[nest] sing: unknown section" "$c" --model configs/shapes/tiny nest.sing=1
    wrong "max_batch_size" "$c" --model configs/shapes/tiny engine.max_batch_size=0
    wrong "max_batch_size" "$c" --model configs/shapes/tiny engine.max_batch_size=many
    wrong "a second configuration file" "$c" --config a.ini --config b.ini
done
for c in generate chat batch score tokenize plan; do
    wrong "unexpected argument 'word'" "$c" word
    wrong "[bench] turns: does nothing here" "$c" --model configs/shapes/tiny bench.turns=3
done

mkdir -p "$tmp/broken"
echo '{"model_type": ' >"$tmp/broken/config.json"
echo '{"model": ' >"$tmp/broken/tokenizer.json"

t "a missing or broken model is one line and exit code 2"
for c in generate chat batch score tokenize plan; do
    prompt=()
    [ "$c" = generate ] && prompt=(--prompt x)
    wrong "" "$c" "${prompt[@]}"
    wrong "/no/such/model" "$c" --model /no/such/model "${prompt[@]}"
    wrong "$tmp/broken" "$c" --model "$tmp/broken" "${prompt[@]}"
done

t "parameters of a request are checked, and named"
wrong "--temperature" generate --temperature warm
wrong "--top-k" generate --top-k 1.5
wrong "--max-tokens" generate --max-tokens -1
wrong "--max-tokens" generate --max-tokens 5000000000
wrong "--seed" generate --seed 18446744073709551616
wrong "--seed" generate --seed -1
wrong "--logit-bias" generate --logit-bias 5
wrong "--logit-bias" generate --logit-bias 5=high
wrong "--stop-tokens" generate --stop-tokens 1,,2
wrong "--banned-tokens" generate --banned-tokens -4
wrong "--logprobs" generate --logprobs 21
wrong "-n: 257 is out of range (1..256)" generate -n 257
for flag in -n --special; do
    wrong "unknown flag '$flag'" chat "$flag" 2
    [[ "$("$perch" chat --help)" != *"  $flag "* ]] || bad "chat --help has $flag"
done
wrong "--logprobs needs --json" chat --logprobs 1
wrong "--ignore-eos takes no value" generate --ignore-eos=1
wrong "--logprobs needs --json" generate --prompt x --logprobs 1
wrong "--prompt" generate "${tiny[@]}"
wrong "exactly one of --prompt and --prompt-file" generate "${tiny[@]}" --prompt a --prompt-file b
wrong "no/such/file" generate "${tiny[@]}" --prompt-file no/such/file
wrong "no tokenizer" generate "${tiny[@]}" --prompt a
wrong "no tokenizer" chat "${tiny[@]}"

t "an unknown, repeated or misplaced key of an INI file is an error that names file, section and key"
ini() { printf '%s\n' "$@" >"$tmp/a.ini"; }
ini '[engine]' 'session_length = 5'
wrong "$tmp/a.ini: [engine] session_length" plan --config "$tmp/a.ini"
ini '[engine]' 'session_len = 0x'
wrong "$tmp/a.ini: [engine] session_len" plan --config "$tmp/a.ini"
ini '[perch]' 'a = 1'
wrong "$tmp/a.ini: [perch]" plan --config "$tmp/a.ini"
ini '[bench]' 'turn = 5'
wrong "$tmp/a.ini: [bench] turn" bench "$tmp/a.ini"
wrong "$tmp/a.ini: [bench] turn" plan --config "$tmp/a.ini"
ini '[bench]' 'concurrency = 1, two'
wrong "$tmp/a.ini: [bench] concurrency" bench "$tmp/a.ini"
ini '[bench]' 'workload = grid' 'turns = 5'
wrong "[bench] turns: does nothing with workload = grid" bench "$tmp/a.ini"
ini '[bench]' 'workload = trace'
wrong "[bench] trace: missing" bench "$tmp/a.ini"
ini '[bench]' 'workload = trace' 'trace = /no/such.jsonl'
wrong "/no/such.jsonl" bench "$tmp/a.ini"
wrong "cannot open nofile: No such file" bench "$tmp/a.ini" bench.trace=nofile
for list in 16,,3 ,16 16, , "16 , , 3"; do
    wrong "[bench] prompt_tokens" bench bench.prompt_tokens="$list"
done
run "$perch" bench bench.prompt_tokens=" 16,3 , 4 5 " --print-config
has "the configuration" 'prompt_tokens = "16, 3, 4, 5"' "$out"

t "bench names what is missing, and targets that can't be written, before it measures"
wrong "FILE.ini is missing" bench
wrong "configs/demo.ini has no [bench] section" bench configs/demo.ini
wrong "--json: cannot write /no/such/folder/b.json: No such" bench configs/bench-grid.ini --json /no/such/folder/b.json
wrong "--plot: cannot write /no/such/folder/b.svg: No such" bench configs/bench-grid.ini --plot /no/such/folder/b.svg
wrong "--json: cannot write $tmp: Is a directory" bench configs/bench-grid.ini --json "$tmp"
wrong "--plot: $tmp/x.png does not end in .svg" bench configs/bench-grid.ini --plot "$tmp/x.png"

t "the command line overrides the INI file, in its order"
ini '[engine]' 'max_batch_size = 3' 'session_len = 100'
run "$perch" plan engine.session_len=200 --config "$tmp/a.ini" "${tiny[@]}" engine.session_len=300 --print-config --json
same "the exit code" 0 "$code"
same "max_batch_size and session_len" "3	300" "$(json engine.max_batch_size engine.session_len <<<"$out")"

t "--print-config prints an INI file that means the same"
run "$perch" bench --config configs/bench-churn.ini --print-config bench.seed=7 cache.cache_chunk_size=4
same "the exit code" 0 "$code"
mv "$tmp/out" "$tmp/printed.ini"
run "$perch" bench "$tmp/printed.ini" --print-config
same "the exit code" 0 "$code"
same "what is printed of what was printed" "$(cat "$tmp/printed.ini")" "$out"
has "it" "seed = 7" "$out"
has "it" "cache_chunk_size = 4" "$out"

t "a path with characters that INI files treat otherwise survives --print-config"
odd="$tmp/a; b # c"
mkdir -p "$odd" && cp configs/shapes/tiny/config.json "$odd"
run "$perch" plan --model "$odd" model.weights=random --print-config
mv "$tmp/out" "$tmp/printed.ini"
run "$perch" plan --config "$tmp/printed.ini" --json
same "the exit code" 0 "$code"
same "the hidden size" 256 "$(json hidden_size <<<"$out")"

t "every file in configs/ is read without complaint"
for file in configs/*.ini; do
    run "$perch" bench "$file" --print-config
    same "the exit code for $file" 0 "$code"
done

t "plan's arithmetic is right: 2 x layers x KV heads x head size x bytes a token"
run "$perch" plan --model configs/shapes/Llama-3.1-8B model.weights=random engine.session_len=1024 \
    cache.cache_max_entry_count=1 --json
if [ "$code" -ne 0 ]; then
    has "the refusal" "free" "$err"
    skip "16 GiB are not free here"
else
    same "bytes a token, a group" "131072	2097152" "$(json kv_bytes_per_token group_bytes <<<"$out")"
    same "parameters, layers" "8030261248	32" "$(json n_parameters n_layers <<<"$out")"
fi
run "$perch" plan "${tiny[@]}" model.dtype=f32 engine.session_len=512 cache.cache_max_entry_count=3 --json
same "the exit code" 0 "$code"
same "bytes a token, sequences, tokens" "4096	3	1536" "$(json kv_bytes_per_token n_full_sequences n_pool_tokens <<<"$out")"
read -r w k h p total <<<"$(json weights_bytes workspace_bytes host_bytes pool_bytes total_bytes <<<"$out")"
same "the sum" "$((w + k + h + p))" "$total"
run "$perch" plan "${tiny[@]}" model.dtype=f32 engine.session_len=512 cache.cache_max_entry_count=3
has "the table" "1536 tokens fit, 3 full sequences of 512 tokens" "$out"

t "plan times what it takes to have KV again"
has "computing" "us for a token at position 0" "$out"
has "what was measured" "through 1 of " "$out"
has "the host tier" "MB/s after" "$out"
run "$perch" plan "${tiny[@]}" engine.session_len=512 --json
same "layers that were timed" 1 "$(json costs.n_layers_measured <<<"$out")"

t "plan says so where nothing fits"
run "$perch" plan "${tiny[@]}" cache.cache_bytes=65536
same "the exit code" 1 "$code"
has "the error" "session_len" "$err"

finish
