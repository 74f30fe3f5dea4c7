#!/usr/bin/env bash
# perch bench: every workload, small: the tables, the JSON, the picture, and whether the numbers can be true.
. "$(dirname "$0")/lib.sh"

# bench INI KEY=VALUE...: into $out, $tmp/b.json, $tmp/b.svg
bench() {
    local file=$1
    shift
    rm -f "$tmp/b.json" "$tmp/b.svg"
    run "$perch" bench "$file" --json "$tmp/b.json" --plot "$tmp/b.svg" "$@"
    same "the exit code" 0 "$code"
}

b() { json "$@" <"$tmp/b.json"; }

at_most() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a + 0 <= b + 0) }'; }

# less WHAT A B: A <= B
less() { at_most "$2" "$3" || bad "$1: $2 is more than $3"; }

small_grid=(bench.prompt_tokens=8,40 bench.completion_tokens=1,6 bench.concurrency=1,5 bench.repeats=2)
small_churn=(bench.sessions=24 bench.turns=120 bench.warmup=30 bench.concurrency=3 cache.cache_max_entry_count=2
    engine.max_batch_size=4 engine.session_len=256)
small_trace=(bench.max_requests=40 bench.warmup=5 bench.speed=0 bench.concurrency=8)

t "grid: a run for each combination, and the counts are what was asked for"
bench configs/bench-grid.ini "${small_grid[@]}"
same "the runs" 8 "$(b runs.#)"
same "the third run" "8	6	1	2" "$(b runs.2.prompt_tokens runs.2.completion_tokens runs.2.concurrency runs.2.requests)"
same "its times to first token, between tokens" "2	10" "$(b runs.2.ttft_ms.n runs.2.between_tokens_ms.n)"
same "the last run" "40	6	5	10" "$(b runs.7.prompt_tokens runs.7.completion_tokens runs.7.concurrency runs.7.requests)"
same "its times to first token, between tokens" "10	50" "$(b runs.7.ttft_ms.n runs.7.between_tokens_ms.n)"
same "its prompt and generated tokens" "400	60" "$(b runs.7.stats.prefill_tokens runs.7.stats.decode_tokens)"
same "raw rows" "15	12	50" "$(b runs.7.raw.requests.# runs.7.raw.columns.# runs.7.raw.between_tokens_ms.#)"
less "percentiles" "$(b runs.7.ttft_ms.p50)" "$(b runs.7.ttft_ms.p99)"
less "the largest" "$(b runs.7.ttft_ms.p99)" "$(b runs.7.ttft_ms.max)"
less "the longest prompt's wait" "$(b runs.7.ttft_ms.max)" "$(awk -v s="$(b runs.7.seconds)" 'BEGIN { print s * 1000 }')"
less "row occupancy" "$(b runs.7.row_share)" 1
has "the table" "40 + 6 tokens, 5 at once" "$out"
has "the table" "TTFT ms p50" "$out"

t "the JSON names hardware, commit, version and the configuration as it took effect"
for path in version commit hardware.cpu hardware.cores hardware.memory_bytes plan.backend config.engine.max_batch_size; do
    value=$(b "$path")
    [ -n "$value" ] && [ "$value" != - ] || bad "$path is missing"
done
same "the grid's keys" "8, 40	2" "$(b config.bench.prompt_tokens config.bench.repeats)"
same "keys that a grid does not read" - "$(b config.bench.turns)"

t "the picture is SVG, with a line and a legend for each cell"
head -c 5 "$tmp/b.svg" | grep -q '<svg ' || bad "it does not begin with <svg"
same "its last line" "</svg>" "$(tail -n 1 "$tmp/b.svg")"
same "its lines" 8 "$(grep -c '<polyline' "$tmp/b.svg")"
has "its legend" "40 + 6 tokens" "$(cat "$tmp/b.svg")"
if grep -qiE 'nan|inf' "$tmp/b.svg"; then bad "it has numbers that are none"; fi

t "--json - prints the JSON alone"
run "$perch" bench configs/bench-grid.ini --json - "${small_grid[@]}" bench.prompt_tokens=8
same "the exit code" 0 "$code"
same "the runs" 4 "$(json runs.# <<<"$out")"

t "churn: too little memory is evicted from, and every turn is of one class"
bench configs/bench-churn.ini "${small_churn[@]}"
same "the turns" 120 "$(b runs.0.requests)"
classes=("runs.0.classes.first turn" "runs.0.classes.hit" "runs.0.classes.partial hit" "runs.0.classes.miss")
sum=0
for class in "${classes[@]}"; do
    sum=$((sum + $(b "$class.ttft_ms.n")))
done
same "the turns of all classes" 120 "$sum"
[ "$(b 'runs.0.classes.miss.ttft_ms.n')" -gt 0 ] || bad "nothing was missed"
[ "$(b 'runs.0.classes.hit.ttft_ms.n')" -gt 0 ] || bad "nothing was hit"
[ "$(b runs.0.stats.evictions)" -gt 0 ] || bad "nothing was evicted"
[ "$(b runs.0.stats.reprefill_tokens)" -gt 0 ] || bad "nothing was computed again"
same "a miss finds nothing" "$(b 'runs.0.classes.miss.prompt_tokens')" "$(b 'runs.0.classes.miss.computed_tokens')"
less "a hit computes" "$(b 'runs.0.classes.hit.computed_tokens')" "$(b 'runs.0.classes.hit.prompt_tokens')"
has "the table" "partial hit" "$out"
has "the table" "re-prefilled" "$out"
has "the table" "% of turns" "$out"
has "the table" "cached % of tokens" "$out"

t "churn: the classes agree with the engine's own count"
read -r hits partial misses first <<<"$(b runs.0.stats.hits runs.0.stats.partial_hits runs.0.stats.misses runs.0.stats.first_turns)"
# Turns under way when the measurement began are in the engine's count alone: at most as many as run at once.
less "hits" "$(($(b 'runs.0.classes.hit.ttft_ms.n') - hits))" 0
less "partial hits" "$(($(b 'runs.0.classes.partial hit.ttft_ms.n') - partial))" 0
less "misses" "$(($(b 'runs.0.classes.miss.ttft_ms.n') - misses))" 0
less "first turns" "$(($(b 'runs.0.classes.first turn.ttft_ms.n') - first))" 0
less "all" "$((hits + partial + misses + first - 120))" 3

t "churn: with room for everything nothing is missed"
bench configs/bench-churn.ini "${small_churn[@]}" cache.cache_max_entry_count=24
same "misses, partial hits, re-prefilled" "0	0	0" \
    "$(b 'runs.0.classes.miss.ttft_ms.n' 'runs.0.classes.partial hit.ttft_ms.n' runs.0.stats.reprefill_tokens)"

t "churn: Zipf's exponent decides how often conversations return"
even=$(bench configs/bench-churn.ini "${small_churn[@]}" bench.zipf_exponent=0 >/dev/null && b 'runs.0.classes.hit.ttft_ms.n')
steep=$(bench configs/bench-churn.ini "${small_churn[@]}" bench.zipf_exponent=2.5 >/dev/null && b 'runs.0.classes.hit.ttft_ms.n')
[ "${steep:-0}" -gt "${even:-0}" ] || bad "hits: $even with 0, $steep with 2.5"

t "traces of our own: prompts that begin alike are forked, CSV and JSON lines, by arrival"
cat >"$tmp/t.jsonl" <<'LINES'
{"timestamp": 0, "input_length": 1536, "output_length": 100, "hash_ids": [1, 2, 3]}
{"timestamp": 100, "input_length": 1100, "output_length": 100, "hash_ids": [7, 8, 9]}
{"timestamp": 600, "input_length": 2000, "output_length": 100, "hash_ids": [1, 2, 3, 4]}
{"timestamp": 900, "input_length": 1000, "output_length": 100, "hash_ids": [1, 5]}
LINES
printf 'TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01 00:00:00.25,100,20\n2024-01-01 00:00:01,300,40\n' >"$tmp/t.csv"
own=(bench.trace="$tmp/t.jsonl" bench.warmup=0 bench.max_requests=0 bench.scale_tokens=0.1 bench.concurrency=1)
bench configs/bench-trace.ini "${own[@]}" bench.speed=1
same "the requests" 4 "$(b runs.0.requests)"
# 1/10 of 512 is 51 tokens a block: the third shares three blocks with the first, the fourth one.
same "cached tokens" "$(printf '%s\n' 0 0 153 51)" "$(b runs.0.raw.requests.0.7 runs.0.raw.requests.1.7 runs.0.raw.requests.2.7 runs.0.raw.requests.3.7 | tr '\t' '\n')"
same "prompt tokens" "$(printf '%s\n' 154 110 200 100)" "$(b runs.0.raw.requests.0.5 runs.0.raw.requests.1.5 runs.0.raw.requests.2.5 runs.0.raw.requests.3.5 | tr '\t' '\n')"
same "arrivals" "$(printf '%s\n' 0 100000 600000 900000)" "$(b runs.0.raw.requests.0.0 runs.0.raw.requests.1.0 runs.0.raw.requests.2.0 runs.0.raw.requests.3.0 | tr '\t' '\n')"
for i in 0 1 2 3; do
    less "request $i is not submitted before it is due" "$(b "runs.0.raw.requests.$i.0")" "$(b "runs.0.raw.requests.$i.1")"
done
# Without forks the prefix index finds the groups of 16 in them, without that nothing.
bench configs/bench-trace.ini "${own[@]}" bench.speed=0 bench.reuse=none
same "cached tokens without forks" $((153 / 16 * 16 + 51 / 16 * 16)) "$(b runs.0.stats.cached_tokens)"
bench configs/bench-trace.ini "${own[@]}" bench.speed=0 bench.reuse=none cache.prefix_index=off
same "cached tokens without reuse" 0 "$(b runs.0.stats.cached_tokens)"
bench configs/bench-trace.ini "${own[@]}" bench.trace="$tmp/t.csv" bench.speed=0 bench.scale_tokens=1
same "the CSV's tokens" "400	60" "$(b runs.0.stats.prefill_tokens runs.0.stats.decode_tokens)"

t "a broken trace is an error that names the line"
echo '{"timestamp": 0, "input_length": 1536, "output_length": 1, "hash_ids": [1]}' >>"$tmp/t.jsonl"
wrong "t.jsonl: line 5: 1 hash_ids, but 1536 tokens are 3 blocks" bench configs/bench-trace.ini bench.trace="$tmp/t.jsonl"
echo 'sometime,3,4' >>"$tmp/t.csv"
wrong "t.csv: line 4" bench configs/bench-trace.ini bench.trace="$tmp/t.csv"
: >"$tmp/e.csv"
wrong "e.csv: no requests" bench configs/bench-trace.ini bench.trace="$tmp/e.csv"
cp "$tmp/t.csv" "$tmp/t.txt"
wrong "trace_format" bench configs/bench-trace.ini bench.trace="$tmp/t.txt"

t "the shared traces replay"
if [ ! -d "$shared/traces" ]; then
    skip "no shared data"
else
    bench configs/bench-trace.ini "${small_trace[@]}"
    same "mooncake: the requests" 40 "$(b runs.0.requests)"
    [ "$(b runs.0.stats.cached_tokens)" -gt 0 ] || bad "mooncake: nothing was shared"
    bench configs/bench-trace.ini "${small_trace[@]}" bench.trace="$shared/traces/azure2023_conv.csv"
    same "azure: the requests" 40 "$(b runs.0.requests)"
fi

t "what can't be run is refused before it is measured"
wrong "do not fit session_len" bench configs/bench-grid.ini bench.prompt_tokens=5000
wrong "of 24 sessions" bench configs/bench-churn.ini "${small_churn[@]}" bench.concurrency=25
printf "2024-01-01 00:00:00,10,2\n2024-01-01 00:00:01,10,2\n" >"$tmp/ok.csv"
wrong "warmup: the trace has only 2 requests" bench configs/bench-trace.ini bench.trace="$tmp/ok.csv" bench.warmup=5

t "a run that measured no request is an error without tables"
run "$perch" bench configs/bench-trace.ini bench.trace="$tmp/ok.csv" bench.warmup=2 bench.max_requests=0
same "the exit code" 1 "$code"
same "the output" "" "$out"
has "the error" "no request was measured" "$err"

# submissions: a line for each request of the last bench: whether it was measured, and the microsecond of its submission.
submissions() {
    b runs.0.raw.requests | sed 's/\],\[/\n/g; s/[][]//g' | awk -F , '{ print $NF, $2 }'
}

t "however short max_seconds is, one request is measured"
bench configs/bench-churn.ini "${small_churn[@]}" bench.max_seconds=1e-9
same "churn: the requests" 1 "$(b runs.0.requests)"
warmup=$(submissions | awk '$1 == "true" { print $2 / 1e6 }')
printf "2024-01-01 00:00:0%d,10,2\n" 0 1 2 3 4 >"$tmp/five.csv"
bench configs/bench-trace.ini bench.trace="$tmp/five.csv" bench.warmup=2 bench.max_requests=0 bench.speed=0 \
    bench.concurrency=1 bench.max_seconds=1e-9
same "trace: the requests" 1 "$(b runs.0.requests)"
bench configs/bench-grid.ini "${small_grid[@]}" bench.max_seconds=1e-9
same "grid: the requests of its cells, a round each" "1	5	1	5" \
    "$(b runs.0.requests runs.1.requests runs.6.requests runs.7.requests)"

t "max_seconds ends a run early, and the warm-up does not use it up"
# How long requests take is the machine's business, so the limit is half of the latest warm-up's time: enough for several.
for _ in $(seq 1 8); do
    limit=$(awk -v warmup="$warmup" 'BEGIN { print warmup / 2 }')
    bench configs/bench-churn.ini "${small_churn[@]}" bench.turns=1000000 bench.max_seconds="$limit"
    read -r n_warmup n_measured warmup late <<<"$(submissions | awk -v limit="$limit" '
        $1 == "false" { n_warmup++ }
        $1 == "true" && n++ == 0 { begin = $2 }
        $1 == "true" && $2 > begin + limit * 1e6 { late++ }
        END { print n_warmup + 0, n + 0, begin / 1e6, late + 0 }')"
    [ "$n_measured" -gt 2 ] && at_most "$limit" "$warmup" && break
done
same "the warm-up's requests" 30 "$n_warmup"
less "max_seconds, or the warm-up could not use it up," "$limit" "$warmup"
[ "$n_measured" -gt 2 ] || bad "it measured only $n_measured requests after its warm-up"
[ "$n_measured" -lt 1000000 ] || bad "it did not end early"
less "max_seconds" "$limit" "$(b runs.0.seconds)"
# Time may pass between looking at the clock and submitting, so one may be late; the next look ends the run.
less "the requests submitted when time was up" "$late" 1

# interrupted TICKS KEY=VALUE...: perch bench, and Ctrl-C when it has worked for so many clock ticks of CPU time: its exit code
# in $code, $tmp/out, $tmp/err. Its engine is open by then, which takes most of the time before.
interrupted() {
    local ticks=$1 begin
    shift
    "$perch" bench configs/bench-churn.ini "${small_churn[@]}" "$@" >"$tmp/out" 2>"$tmp/err" &
    pid=$!
    wait_for catches_interrupt
    begin=$(cpu_ticks)
    wait_for worked_for $((begin + ticks))
    kill -INT "$pid"
    wait "$pid"
    code=$?
}

cpu_ticks() { awk '{ print $14 + $15 }' "/proc/$pid/stat" 2>/dev/null; }

worked_for() { [ "$(cpu_ticks)" -ge "$1" ]; }

t "Ctrl-C in the warm-up is an error without tables"
interrupted 20 bench.warmup=1000000
same "the exit code" 130 "$code"
same "the output" "" "$(cat "$tmp/out")"
has "the error" "interrupted before anything was measured" "$(cat "$tmp/err")"

t "Ctrl-C reports what there is"
# Later and later, until a request has ended before.
for ticks in 20 40 80 160 320 640 1280 2560 5120 10240; do
    interrupted "$ticks" bench.warmup=0 bench.turns=1000000
    same "the exit code" 130 "$code"
    [[ "$(cat "$tmp/err")" == *"interrupted before anything was measured"* ]] || break
done
same "stderr" "" "$(cat "$tmp/err")"
has "what there is" "all" "$(cat "$tmp/out")"

t "--trace writes a trace whose steps are the engine's"
bench configs/bench-churn.ini "${small_churn[@]}" --trace "$tmp/trace.json"
json "#" <"$tmp/trace.json" >/dev/null || bad "the trace is no JSON"
same "what is lost" 0 "$(b runs.0.stats.trace_lost)"
less "the steps of the measured part" "$(b runs.0.stats.steps)" "$(grep -c '"name":"step"' "$tmp/trace.json")"
same "submitted and finished" "$(grep -c '"ph":"b".*"name":"request"' "$tmp/trace.json")" \
    "$(grep -c '"ph":"e".*"name":"request"' "$tmp/trace.json")"
wrong "one file has no place for the variants" bench configs/bench-churn.ini --trace "$tmp/t" "bench.vary=cache.mapping: vmm, table"

finish
