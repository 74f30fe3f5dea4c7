#!/usr/bin/env bash
# perch bench: a grid's rounds beside what the device could do, and the variants of bench.vary side by side.
. "$(dirname "$0")/lib.sh"

grid=(configs/bench-grid.ini bench.prompt_tokens=24 bench.completion_tokens=60 bench.concurrency=1,4 bench.repeats=3)

# bench ARGUMENT...: into $out and $tmp/b.json
bench() {
    rm -f "$tmp/b.json"
    run "$perch" bench "$@" --json "$tmp/b.json"
    same "the exit code" 0 "$code"
    same "stderr" "" "$err"
}

b() { json "$@" <"$tmp/b.json"; }

# near WHAT A B: they differ by less than a millionth.
near() {
    awk -v a="$2" -v b="$3" 'BEGIN { d = a > b ? a - b : b - a; exit !(b > 0 && d < b * 1e-6) }' || bad "$1: $2 is not $3"
}

# least WHAT A B: A <= B
least() { awk -v a="$2" -v b="$3" 'BEGIN { exit !(a + 0 <= b + 0) }' || bad "$1: $2 is more than $3"; }

t "rounds: a rate for each, of prefill and of the steps in which all conversations decode"
bench "${grid[@]}"
for i in 0 1; do
    same "the rates" "3	3" "$(b runs.$i.rounds.prefill_tokens_per_s.# runs.$i.rounds.all_decoding_tokens_per_s.#)"
    least "the least" 1 "$(b runs.$i.rounds.all_decoding_tokens_per_s.0)"
    near "the median" "$(b runs.$i.rounds.all_decoding_p50)" "$(b runs.$i.rounds.all_decoding_tokens_per_s.1)"
    near "the median of prefill" "$(b runs.$i.rounds.prefill_p50)" "$(b runs.$i.rounds.prefill_tokens_per_s.1)"
    # A conversation has its prompt and at least its first token, and at most all of them.
    least "the context" 25 "$(b runs.$i.rounds.context)"
    least "the context" "$(b runs.$i.rounds.context)" 84
    least "host time" 0 "$(b runs.$i.rounds.host_us_per_step)"
    least "host time" "$(b runs.$i.rounds.host_us_per_step)" "$(awk -v s="$(b runs.$i.seconds)" 'BEGIN { print s * 1e6 }')"
done
has "the table" "all decoding tok/s p50" "$out"

t "rounds: without the device's limits there are no bounds, and no shares of them"
same "bounds" "null	null	null	null	null" \
    "$(b runs.0.rounds.bound_prefill_by_matrix runs.0.rounds.bound_decode_by_copy runs.0.rounds.bound_decode_by_matrix \
        runs.0.rounds.prefill_share runs.0.rounds.all_decoding_share)"

t "rounds: one token each, or more conversations than rows, is no step in which all decode"
bench "${grid[@]}" bench.completion_tokens=1
same "rates" "3	0	null" "$(b runs.1.rounds.prefill_tokens_per_s.# runs.1.rounds.all_decoding_tokens_per_s.# runs.1.rounds.all_decoding_p50)"
bench "${grid[@]}" engine.max_batch_size=2
same "rates" "3	0" "$(b runs.1.rounds.prefill_tokens_per_s.# runs.1.rounds.all_decoding_tokens_per_s.#)"

# What docs/cli.md says is counted, of configs/shapes/tiny in f32: 3,164,416 parameters, 1,024 x 256 of them the output's;
# 4 layers of 8 heads of 32; 4,096 bytes of KV a token.
t "bounds: what has to be copied and multiplied, over what the device can"
bench "${grid[@]}" bench.copy_gbps=10 bench.matrix_tflops=0.25
same "parameters that a token meets" 3164416 "$(b plan.n_step_parameters)"
for i in 0 1; do
    rows=$(b runs.$i.concurrency)
    read -r context decode prefill <<<"$(b runs.$i.rounds.context runs.$i.rounds.all_decoding_p50 runs.$i.rounds.prefill_p50)"
    read -r copy matrix fill <<<"$(awk -v r="$rows" -v c="$context" 'BEGIN {
        attention = 4 * 4 * 8 * 32
        printf "%.9g %.9g %.9g", r * 10e9 / (3164416 * 4 + r * c * 4096), 0.25e12 / (2 * 3164416 + attention * c),
            0.25e12 / (2 * (3164416 - 1024 * 256) + 2 * 1024 * 256 / 24 + attention * 12.5) }')"
    near "decoding, by copies" "$(b runs.$i.rounds.bound_decode_by_copy)" "$copy"
    near "decoding, by products" "$(b runs.$i.rounds.bound_decode_by_matrix)" "$matrix"
    near "prefill" "$(b runs.$i.rounds.bound_prefill_by_matrix)" "$fill"
    near "the share of decoding" "$(b runs.$i.rounds.all_decoding_share)" \
        "$(awk -v d="$decode" -v a="$copy" -v b="$matrix" 'BEGIN { printf "%.9g", d / (a < b ? a : b) }')"
    near "the share of prefill" "$(b runs.$i.rounds.prefill_share)" "$(awk -v p="$prefill" -v f="$fill" 'BEGIN { printf "%.9g", p / f }')"
done
bench "${grid[@]}" bench.copy_gbps=10 bench.concurrency=1
same "without matrix_tflops" "null	null" "$(b runs.0.rounds.bound_decode_by_matrix runs.0.rounds.prefill_share)"
least "the share by copies alone" 0.000001 "$(b runs.0.rounds.all_decoding_share)"

t "bounds: an embedding that is a matrix of its own is not counted"
sed 's/"tie_word_embeddings": true/"tie_word_embeddings": false/' configs/shapes/tiny/config.json >"$tmp/config.json"
run "$perch" plan --model "$tmp" model.weights=random --json
same "parameters" "3426560	3164416" "$(json n_parameters n_step_parameters <<<"$out")"

t "vary: the base, then each other value of one key, in one table"
bench "${grid[@]}" bench.vary="cache.mapping: vmm, table; engine.max_step_tokens: 64, 32, 128" engine.max_batch_size=4 \
    engine.prefill_reserve=8 bench.repeats=1 bench.warmup=0
same "variants, runs" "4	8" "$(b variants.# runs.#)"
same "the variants" "$(printf '%s\n' 'cache.mapping=vmm engine.max_step_tokens=64' cache.mapping=table \
    engine.max_step_tokens=32 engine.max_step_tokens=128)" \
    "$(b variants.0.name variants.1.name variants.2.name variants.3.name | tr '\t' '\n')"
same "their mappings" "vmm	table	vmm	vmm" "$(b variants.0.plan.mapping variants.1.plan.mapping variants.2.plan.mapping variants.3.plan.mapping)"
same "the runs' variants" "0	0	1	1	2	2	3	3" \
    "$(b runs.0.variant runs.1.variant runs.2.variant runs.3.variant runs.4.variant runs.5.variant runs.6.variant runs.7.variant)"
same "the runs' conversations" "1	4	1	4" "$(b runs.0.concurrency runs.1.concurrency runs.6.concurrency runs.7.concurrency)"
same "the configuration is the base's" "vmm	64" "$(b config.cache.mapping config.engine.max_step_tokens)"
same "runs of the base" "24 + 60 tokens, 1 at once" "$(b runs.0.name)"
same "runs of a variant" "24 + 60 tokens, 4 at once, cache.mapping=table" "$(b runs.3.name)"
least "more steps with fewer tokens each" "$(($(b runs.1.stats.steps) + 1))" "$(b runs.5.stats.steps)"
comparison=$(sed -n '/^run .* variant /,$p' <<<"$out")
same "the lines of the comparison" 9 "$(wc -l <<<"$comparison")"
same "the base's ratios" "1.00 1.00" "$(sed -n 2p <<<"$comparison" | awk '{ print $(NF - 4), $(NF - 2) }')"
near "the median in the table" "$(sed -n 9p <<<"$comparison" | awk '{ print $(NF - 3) }')" \
    "$(b runs.7.rounds.all_decoding_p50 | awk '{ printf "%.0f", $1 }')"

t "vary: the answers of variants are of the same work"
same "prompt tokens" "$(b runs.1.stats.prefill_tokens)" "$(b runs.3.stats.prefill_tokens)"
same "generated tokens" "$(b runs.1.stats.decode_tokens)" "$(b runs.3.stats.decode_tokens)"

t "vary: conversations that churn are laid side by side as well"
bench configs/bench-churn.ini bench.sessions=12 bench.turns=40 bench.warmup=4 bench.concurrency=2 cache.cache_max_entry_count=2 \
    engine.max_batch_size=4 engine.session_len=256 bench.vary="cache.mapping: table, vmm"
same "the runs" "table	vmm" "$(b variants.0.plan.mapping variants.1.plan.mapping)"
same "the turns" "40	40" "$(b runs.0.requests runs.1.requests)"
has "the comparison" "cache.mapping=vmm" "$(sed -n '/^run .* variant /,$p' <<<"$out")"

t "vary: what it can't be is an error that names the reason"
for case in "cache.mapping: vmm=one value is nothing to vary" "cache.mapping=is not section.key: value, value" \
    "cache.mapping: vmm, vmm=stands there twice" "engine.graphs: on,=a value is empty" "engine.graphs: on, maybe=graphs" \
    "engine.colour: red, blue=unknown key" "engine.graphs: on, off; engine.graphs: off, on=stands there twice" \
    ": on, off=is not section.key" "engine.queue_size: 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17=more than 16 values"; do
    wrong "${case#*=}" bench "${grid[@]}" bench.vary="${case%%=*}"
done
wrong "[bench] vary" bench "${grid[@]}" bench.vary="bench.repeats: 1, 2"
wrong "no place for the variants" bench "${grid[@]}" bench.vary="engine.graphs: on, off" --plot "$tmp/b.svg"
wrong "copy_gbps" bench "${grid[@]}" bench.copy_gbps=-1
wrong "does nothing with workload = churn" bench configs/bench-churn.ini bench.matrix_tflops=1

t "vary: --print-config gives a file that says the same"
run "$perch" bench "${grid[@]}" bench.vary="cache.mapping: vmm, table; engine.graphs: on, off" bench.copy_gbps=12.5 --print-config
printf '%s\n' "$out" >"$tmp/again.ini"
same "what it has" 'vary = "cache.mapping: vmm, table; engine.graphs: on, off"' "$(grep '^vary' "$tmp/again.ini")"
first=$out
run "$perch" bench "$tmp/again.ini" --print-config
same "and again" "$first" "$out"

t "vary: a variant that can't be opened ends the run with its reason"
run "$perch" bench "${grid[@]}" bench.vary="cache.page_bytes: auto, 4K" cache.mapping=table
same "the exit code" 2 "$code"
has "the error" "page_bytes" "$err"
same "the output" "" "$out"

finish
