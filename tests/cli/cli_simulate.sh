#!/usr/bin/env bash
# perch bench with executor = simulate: traces, what is found beside the optimum, and that all of it is the same every time.
. "$(dirname "$0")/lib.sh"

# simulate KEY=VALUE...: into $out, $tmp/b.json. Pages of the tiny shape in bf16 are 2 MiB: 1,024 tokens.
simulate() {
    rm -f "$tmp/b.json"
    run "$perch" bench "$tmp/sim.ini" --json "$tmp/b.json" "$@"
    same "the exit code" 0 "$code"
    same "stderr" "" "$err"
}

b() { json "$@" <"$tmp/b.json"; }

# least WHAT A B: A <= B
least() { awk -v a="$2" -v b="$3" 'BEGIN { exit !(a + 0 <= b + 1e-12) }' || bad "$1: $2 is more than $3"; }

# near WHAT A B
near() { awk -v a="$2" -v b="$3" 'BEGIN { exit !(a - b < 1e-9 && b - a < 1e-9) }' || bad "$1: $2 is not $3"; }

cat >"$tmp/sim.ini" <<END
[engine]
session_len = 8192
max_batch_size = 8
max_step_tokens = 512
[model]
path = shape
weights = random
[cache]
mapping = table
cache_bytes = 64M
[bench]
executor = simulate
workload = trace
reuse = none
trace = trace.jsonl
concurrency = 100
warmup = 0
END
mkdir -p "$tmp/shape"
sed 's/"max_position_embeddings": 2048/"max_position_embeddings": 8192/' configs/shapes/tiny/config.json >"$tmp/shape/config.json"

# 400 requests of 40 conversations that go on, of which a few have much to do: a prompt is all blocks before it and some more.
awk 'BEGIN {
    srand(3)
    for (i = 0; i < 400; i++) {
        s = int(40 * rand() * rand())
        n[s] = n[s] >= 12 ? 1 : n[s] + 1 + int(2 * rand())
        if (n[s] == 1) { generation[s]++ }
        ids = ""
        for (k = 0; k < n[s]; k++) {
            id = k == 0 ? s % 4 : (s * 100 + generation[s]) * 100 + k
            ids = ids (k ? ", " : "") id
        }
        length_ = (n[s] - 1) * 512 + 512
        printf "{\"timestamp\": %d, \"input_length\": %d, \"output_length\": %d, \"hash_ids\": [%s]}\n", i * 50, length_, 1 + int(60 * rand()), ids
    }
}' >"$tmp/trace.jsonl"

t "a trace: every request is served, and what is found lies below the optimum, and that below endless memory's"
simulate
same "requests, skipped" "400	0" "$(b runs.0.requests runs.0.simulation.skipped)"
least "nothing is found" 0.05 "$(b runs.0.simulation.found_token_share)"
least "found" "$(b runs.0.simulation.found_token_share)" "$(b runs.0.simulation.optimum_token_share)"
least "the optimum" "$(b runs.0.simulation.optimum_token_share)" "$(b runs.0.simulation.endless_token_share)"
same "raw rows" "400	0" "$(b runs.0.raw.requests.# runs.0.raw.between_tokens_ms.#)"
has "the table" "optimum %" "$out"
least "a time to first token" 0.001 "$(b runs.0.simulation.ttft_mean_ms)"
near "its mean" "$(b runs.0.simulation.ttft_mean_ms)" "$(b runs.0.ttft_ms.mean)"

t "a simulation is the same every time, but for the host's own time"
without_host() { sed -E 's/"(date|host_us|host_share)": ?[^,}]*//g' "$tmp/b.json"; }
without_host >"$tmp/first"
simulate
without_host >"$tmp/second"
cmp -s "$tmp/first" "$tmp/second" || bad "two runs differ"
simulate bench.seed=2
without_host | cmp -s - "$tmp/first" && bad "the seed changes nothing, not even itself"

t "endless memory: all is found that ever was there, in tokens but for the last of a prompt"
simulate cache.cache_bytes=8G bench.concurrency=1
near "blocks" "$(b runs.0.simulation.found_block_share)" "$(b runs.0.simulation.endless_block_share)"
near "the optimum" "$(b runs.0.simulation.optimum_token_share)" "$(b runs.0.simulation.endless_token_share)"
same "evicted" 0 "$(b runs.0.stats.evicted_pages)"

t "more memory never hurts the optimum; combine = all has every combination, and the picture a line for each"
simulate bench.vary="cache.cache_bytes: 40M, 64M, 128M, 256M; engine.schedule: fcfs, prefix" bench.combine=all --plot "$tmp/b.svg"
same "the runs" 8 "$(b runs.#)"
for i in 0 1; do
    for k in 0 2 4; do
        least "the optimum" "$(b runs.$((k + i)).simulation.optimum_token_share)" "$(b runs.$((k + i + 2)).simulation.optimum_token_share)"
        least "found" "$(b runs.$((k + i)).simulation.found_token_share)" "$(b runs.$((k + i)).simulation.optimum_token_share)"
    done
done
has "the last variant" "cache.cache_bytes=256M engine.schedule=prefix" "$(b variants.7.name)"
same "its lines" 6 "$(grep -c '<polyline' "$tmp/b.svg")"
has "its legend" "engine.schedule=prefix" "$(cat "$tmp/b.svg")"
has "its legend" "optimum" "$(cat "$tmp/b.svg")"
simulate bench.vary="cache.cache_bytes: 40M, 64M; engine.schedule: fcfs, prefix" bench.combine=one
same "the runs, one key at a time" 3 "$(b runs.#)"

t "faster hardware is faster, and slower is slower"
simulate
slow=$(b runs.0.simulation.ttft_mean_ms)
simulate bench.sim_matrix_tflops=7800 bench.sim_attention_tflops=4000 bench.sim_memory_gbps=43000 bench.sim_launch_us=10
least "ten times the hardware" "$(b runs.0.simulation.ttft_mean_ms)" "$(awk -v s="$slow" 'BEGIN { print s / 5 }')"

t "what doesn't fit session_len is skipped, counted, and not asked of the optimum"
simulate engine.session_len=4096
skipped=$(b runs.0.simulation.skipped)
least "skipped" 1 "$skipped"
same "requests and skipped" 400 "$(($(b runs.0.requests) + skipped))"
least "found" "$(b runs.0.simulation.found_token_share)" "$(b runs.0.simulation.optimum_token_share)"

t "the other workloads, and a trace without blocks"
cat >"$tmp/other.ini" <<END
[engine]
session_len = 2048
max_batch_size = 8
max_step_tokens = 512
[model]
path = shape
weights = random
[cache]
cache_max_entry_count = 8
[bench]
executor = simulate
END
run "$perch" bench "$tmp/other.ini" --json "$tmp/b.json" bench.workload=churn bench.turns=200 bench.sessions=30 bench.prompt_tokens=200
same "the exit code" 0 "$code"
same "turns" "200	null" "$(b runs.0.requests runs.0.simulation.optimum_token_share)"
least "hits" 1 "$(b runs.0.stats.hits)"
least "re-prefilled" 1 "$(b runs.0.stats.reprefill_tokens)"
for gbps in 1000 2; do
    run "$perch" bench "$tmp/other.ini" --json "$tmp/b.json" bench.workload=churn bench.turns=200 bench.sessions=30 \
        bench.prompt_tokens=200 cache.host_bytes=1G cache.restore=load bench.sim_host_gbps=$gbps
    same "the exit code" 0 "$code"
    least "restored" 1 "$(b runs.0.stats.restored_tokens)"
    b runs.0.ttft_ms.mean >"$tmp/ttft-$gbps"
done
least "a slow way back: longer by half" "$(awk '{ print 1.5 * $1 }' "$tmp/ttft-1000")" "$(cat "$tmp/ttft-2")"
run "$perch" bench "$tmp/other.ini" --json "$tmp/b.json" bench.prompt_tokens=500 bench.concurrency=1,8
same "the exit code" 0 "$code"
same "rounds" "2	3" "$(b runs.# runs.1.rounds.prefill_tokens_per_s.#)"
printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n' >"$tmp/azure.csv"
for i in 0 1 2 3 4 5 6 7 8 9; do
    printf '2023-11-16 18:15:4%d.5,%d,%d\n' "$i" $((100 + i)) $((i + 1)) >>"$tmp/azure.csv"
done
simulate bench.trace="$tmp/azure.csv"
same "requests, tokens" "10	1045	55" "$(b runs.0.requests runs.0.stats.prefill_tokens runs.0.stats.decode_tokens)"
same "an optimum" null "$(b runs.0.simulation.optimum_token_share)"
awk -v s="$(b runs.0.seconds)" 'BEGIN { exit !(s >= 9 && s < 9.5) }' || bad "nine seconds of traffic took $(b runs.0.seconds)"

t "sessions: turns, beginnings and pauses are as many and as long as asked for, and the next turn finds what is there"
run "$perch" bench "$tmp/other.ini" --json "$tmp/b.json" bench.workload=sessions bench.sessions=2000 bench.session_rate=0.5 \
    bench.session_turns=4 bench.think_seconds=30 bench.prompt_tokens=20 bench.completion_tokens=10 bench.concurrency=100 bench.warmup=0
same "the exit code" 0 "$code"
least "turns" 7400 "$(b runs.0.requests)"
least "turns" "$(b runs.0.requests)" 8600
least "the hour of beginnings, and a while" 3700 "$(b runs.0.seconds)"
least "the hour of beginnings, and a while" "$(b runs.0.seconds)" 4700
same "first turns" 2000 "$(b runs.0.stats.first_turns)"
same "left open" 0 "$(b runs.0.stats.sequences_open)"
run "$perch" bench "$tmp/other.ini" --json "$tmp/b.json" bench.workload=sessions bench.sessions=5 bench.session_turns=1000000 \
    bench.think_seconds=0 bench.prompt_tokens=500 bench.completion_tokens=10 bench.warmup=0
same "turns of conversations that end where session_len does" 20 "$(b runs.0.requests)"

t "laps: the trace again, with other tokens, after the last request"
simulate bench.laps=3 cache.cache_bytes=8G
same "requests" 1200 "$(b runs.0.requests)"
three=$(b runs.0.simulation.endless_block_share)
awk -v s="$(b runs.0.seconds)" 'BEGIN { exit !(s >= 59.9 && s < 62) }' || bad "three times 20 s took $(b runs.0.seconds)"
simulate cache.cache_bytes=8G
near "what each lap finds of itself" "$three" "$(b runs.0.simulation.endless_block_share)"
simulate bench.laps=3 bench.max_requests=500
same "requests" 500 "$(b runs.0.requests)"

t "a wrong line is named with its file"
printf '{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [1]}\n{"timestamp": 1}\n' >"$tmp/bad.jsonl"
wrong "bad.jsonl: line 2: " bench "$tmp/sim.ini" bench.trace="$tmp/bad.jsonl"
printf '2023-11-16 18:15:46.5,10\n' >"$tmp/bad.csv"
wrong "bad.csv: line 1: " bench "$tmp/sim.ini" bench.trace="$tmp/bad.csv"
printf '2023-11-16 18:15:46.5,10,-3\n' >"$tmp/bad.csv"
wrong "bad.csv: line 1: " bench "$tmp/sim.ini" bench.trace="$tmp/bad.csv"
printf '{"timestamp": 0, "input_length": 10, "output_length": 1, "hash_ids": [1, 2]}\n' >"$tmp/bad.jsonl"
wrong "bad.jsonl: line 1: " bench "$tmp/sim.ini" bench.trace="$tmp/bad.jsonl"

t "keys of a simulation are checked, and do nothing without one"
wrong "[bench] sim_matrix_tflops: 0 is out of range" bench "$tmp/sim.ini" bench.sim_matrix_tflops=0
wrong "[bench] executor: 'gpu' is not one of engine | simulate" bench "$tmp/sim.ini" bench.executor=gpu
wrong "[bench] sim_host_gbps: does nothing with executor = engine" bench configs/bench-grid.ini bench.sim_host_gbps=10
wrong "[bench] belady: does nothing with workload = churn" bench "$tmp/other.ini" bench.workload=churn bench.belady=off
wrong "[bench] combine: does nothing without vary" bench "$tmp/other.ini" bench.combine=all
wrong "[store] backend" bench "$tmp/other.ini" store.backend=lmdb store.path="$tmp/store"
run "$perch" bench "$tmp/other.ini" bench.sim_memory_gib=0.01
same "the exit code where it does not fit" 1 "$code"
has "the reason" "MiB are free" "$err"
has "the printed configuration" "sim_memory_gbps = 4300" "$("$perch" bench "$tmp/sim.ini" --print-config)"
[[ "$("$perch" bench configs/bench-grid.ini --print-config)" != *sim_* ]] || bad "keys of a simulation are printed without one"

t "Mooncake's trace: endless memory finds 36.64 % of its blocks"
trace=$shared/traces/mooncake_conversation.jsonl
if [ ! -f "$trace" ]; then
    skip "$trace is not there"
else
    run "$perch" bench configs/bench-simulate.ini --json "$tmp/b.json" bench.trace="$trace" bench.sim_memory_gib=0 \
        cache.cache_bytes=12T
    same "the exit code" 0 "$code"
    same "requests" 12031 "$(b runs.0.requests)"
    near "blocks" "$(b runs.0.simulation.endless_block_share)" "$(awk 'BEGIN { printf "%.10f", 105710 / 288500 }')"
    # Who arrives while many compute may not wait for all that they are about to have: a block or two.
    found=$(b runs.0.simulation.found_block_share)
    least "blocks that the cache found" 0.3664 "$found"
    least "blocks that the cache found" "$found" 0.36642
fi

finish
