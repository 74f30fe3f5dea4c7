#!/usr/bin/env bash
# perch batch and perch score on a small shape with random weights: order, sessions, errors, streaming, eviction, signals.
. "$(dirname "$0")/lib.sh"
model=("${tiny[@]}" model.dtype=f32 engine.session_len=512)

# batch ARGUMENT...: perch batch of stdin.
batch() { run "$perch" batch "${model[@]}" "$@"; }

t "lines come out in the order they went in, whatever finishes first"
for i in $(seq 1 40); do
    printf '{"id": %d, "tokens": [%d, 7, 9], "max_tokens": %d, "ignore_eos": true}\n' "$i" "$i" $((1 + (i * 37) % 50))
done >"$tmp/many"
batch <"$tmp/many"
same "the exit code" 0 "$code"
same "the ids" "$(seq 1 40)" "$(json id <<<"$out")"
same "the lengths" "$(for i in $(seq 1 40); do echo $((1 + (i * 37) % 50)); done)" "$(json tokens.# <<<"$out")"
same "the finish reasons" length "$(json finish_reason <<<"$out" | sort -u)"
many=$out

t "what a line gives does not depend on batch size, threads, step size, queue or eviction"
for with in "engine.max_batch_size=1" "engine.max_batch_size=3 parallel.threads=1" "engine.queue_size=1" \
    "engine.max_step_tokens=40 engine.max_batch_size=8 engine.queue_full=refuse engine.queue_size=2" \
    "cache.cache_max_entry_count=1"; do
    # shellcheck disable=SC2086
    batch $with <"$tmp/many"
    same "the output with $with" "$many" "$out"
done

t "lines of a session are turns of one sequence, and eviction does not change them"
for turn in 1 2 3 4 5; do
    for s in 1 2 3 4 5 6 7; do
        printf '{"id": "%d.%d", "session": %d, "tokens": [%d, %d, 5, 6, 7, 8], "max_tokens": 40, "ignore_eos": true}\n' \
            "$s" "$turn" "$s" "$turn" "$s"
    done
done >"$tmp/turns"
batch --stats <"$tmp/turns"
same "the exit code" 0 "$code"
same "prompt tokens of session 3" "$(printf '%s\n' 6 52 98 144 190)" "$(json id usage.prompt_tokens <<<"$out" | sed -n 's/^3\.[1-5]\t//p')"
same "cached tokens of session 3" "$(printf '%s\n' 0 45 91 137 183)" "$(json id usage.cached_tokens <<<"$out" | sed -n 's/^3\.[1-5]\t//p')"
turns=$(json id tokens finish_reason <<<"$out")
batch --stats --json cache.cache_max_entry_count=1 <"$tmp/turns"
same "the exit code" 0 "$code"
same "the turns in the memory of one" "$turns" "$(json id tokens finish_reason <<<"$out")"
[ "$(json evictions <<<"$err")" -gt 0 ] || bad "nothing was evicted: $err"
[ "$(json reprefill_tokens <<<"$err")" -gt 0 ] || bad "nothing was computed again: $err"

t "sessions \"1\" and 1 are different, and a turn sees what came before it"
printf '%s\n' '{"id": "a", "session": "1", "tokens": [1, 2, 3], "max_tokens": 2, "ignore_eos": true}' \
    '{"id": "b", "session": 1, "tokens": [1, 2, 3], "max_tokens": 2, "ignore_eos": true}' \
    '{"id": "c", "session": "1", "tokens": [4], "max_tokens": 2, "ignore_eos": true}' >"$tmp/in"
batch <"$tmp/in"
same "prompt tokens" "$(printf '%s\n' 3 3 6)" "$(json usage.prompt_tokens <<<"$out")"
first=$(json tokens <<<"$out" | head -n 1 | tr -d '[]')
printf '{"tokens": [1, 2, 3, %s, 4], "max_tokens": 2, "ignore_eos": true}\n' "$first" >"$tmp/in"
c=$(json tokens <<<"$out" | tail -n 1)
batch <"$tmp/in"
same "the same conversation in one piece" "$c" "$(json tokens <<<"$out")"

t "a store keeps no sequence of a batch"
batch --stats --json store.backend=lmdb store.path="$tmp/store" <"$tmp/turns"
same "the exit code" 0 "$code"
same "turns committed" "$(wc -l <"$tmp/turns")" "$(json store_commits <<<"$err")"
same "sequences open in the end" 0 "$(json sequences_open <<<"$err")"

t "a wrong line gives a line with its number and the reason, the others run, and the exit code is 1"
cat >"$tmp/in" <<'LINES'
{"id": 1, "tokens": [1, 2], "max_tokens": 2, "ignore_eos": true}
not JSON

{"id": 2, "tokens": [1, 2], "max_token": 2}
{"id": 3, "tokens": [1, -2]}
{"id": 4, "tokens": [1, 1024]}
{"id": 5, "tokens": [1], "temperature": "hot"}
{"id": 6, "tokens": [1], "temperature": -0.5}
{"id": 7, "tokens": [1], "top_p": 0}
{"id": 8, "tokens": [1], "max_tokens": 5000}
{"id": 9, "prompt": "x"}
{"id": 10}
{"id": 11, "tokens": [1], "prompt": "x"}
{"id": 12, "tokens": [1], "stop": 5}
{"id": 13, "tokens": [1], "stop_tokens": [4000]}
{"id": 14, "tokens": [1], "logit_bias": {"x": 1}}
{"id": 15, "tokens": [1], "logit_bias": {"5": 101}}
{"id": 16, "tokens": [1], "session": 1.5}
{"id": 17, "tokens": [1], "priority": 8}
{"id": 18, "tokens": [1], "n": 0}
{"id": 19, "tokens": [1], "id": 19}
{"id": 20, "tokens": []}
{"id": 21, "tokens": [1], "messages": []}
{"id": 22, "messages": [{"role": "user"}]}
[1, 2]
{"id": 23, "tokens": [1, 2], "max_tokens": 2, "ignore_eos": true, "session": "s", "special": true}
{"id": 24, "session": "s", "tokens": "1 2"}
{"id": 25, "session": "s", "tokens": [3], "max_tokens": 1, "ignore_eos": true}
{"id": 26, "tokens": [3], "format": "chatml"}
{"id": 27, "messages": [{"role": "user", "content": "x"}], "format": 5}
{"id": 28, "tokens": [1], "n": 257}
{"id": 29, "tokens": [1], "seed": "18446744073709551616"}
{"id": 30, "tokens": [1], "hints": 5}
{"id": 31, "tokens": [1], "hints": {"pin": 1}}
{"id": 32, "tokens": [1], "hints": {"priority": 8}}
{"id": 33, "session": "h", "tokens": [1, 2], "max_tokens": 1, "ignore_eos": true, "hints": {"pin": true, "priority": -8, "expect_return_ms": 5, "ttl_ms": 1000}}
LINES
batch <"$tmp/in"
same "the exit code" 1 "$code"
same "the number of lines" 35 "$(wc -l <<<"$out")"
expect() { # LINE ID PART
    has "the error of line $1" "$3" "$(json error.line id error.message <<<"$out" | sed -n "s/^$1	$2	//p")"
}
expect 2 - "not JSON"
expect 4 2 "unknown field 'max_token'"
expect 5 3 "tokens: element 1"
expect 6 4 "tokens[1]: 1024"
expect 7 5 "temperature: must be a number"
expect 8 6 "temperature"
expect 9 7 "top_p"
expect 10 8 "session_len"
expect 11 9 "tokenizer"
expect 12 10 "exactly one of prompt, tokens, messages"
expect 13 11 "exactly one of prompt, tokens, messages"
expect 14 12 "stop: must be a string"
expect 15 13 "stop_tokens"
expect 16 14 "logit_bias: 'x'"
expect 17 15 "logit_bias"
expect 18 16 "session: must be"
expect 19 17 "priority"
expect 20 18 "n: 0"
expect 21 - "duplicate"
expect 22 20 "tokens"
expect 23 21 "messages"
expect 24 22 "messages: element 0"
expect 25 - "not a JSON object"
expect 27 24 "tokens: must be an array"
expect 29 26 "format: does nothing without messages"
expect 33 30 "hints: must be an object"
expect 34 31 "hints: 'pin'"
expect 35 32 "priority: 8 is not in -8..7"
same "the line with hints" 3 "$(json id usage.prompt_tokens usage.completion_tokens <<<"$out" | awk '$1 == 33 { print $2 + $3 }')"
expect 30 27 "format: must be a string"
expect 31 28 "n: 257 is out of range (1..256)"
expect 32 29 "seed: '18446744073709551616'"
same "line 1" length "$(json id finish_reason <<<"$out" | sed -n 's/^1	//p')"
same "the session goes on after its wrong line" 5 "$(json id usage.prompt_tokens <<<"$out" | sed -n 's/^25	//p')"

t "a last line without a newline, long lines, ids of every kind"
{
    printf '{"id": {"a": [1]}, "max_tokens": 1, "ignore_eos": true, "tokens": ['
    seq -s , 1 400 | tr -d '\n'
    printf ']}\n{"id": null, "tokens": [3], "max_tokens": 1, "ignore_eos": true}\r\n'
    printf '{"tokens": [3], "max_tokens": 1, "ignore_eos": true}'
} >"$tmp/in"
batch <"$tmp/in"
same "the exit code" 0 "$code"
same "the ids" "$(printf '%s\n' '{"a":[1]}' null -)" "$(json id <<<"$out")"
same "prompt tokens" "$(printf '%s\n' 400 1 1)" "$(json usage.prompt_tokens <<<"$out")"

t "no input is no output"
batch </dev/null
same "the exit code" 0 "$code"
same "the output" "" "$out"

t "seeds, completions, biases, bans, stop tokens and log-probabilities"
cat >"$tmp/in" <<'LINES'
{"id": "a", "tokens": [1, 2], "max_tokens": 12, "ignore_eos": true, "temperature": 1, "seed": 5}
{"id": "b", "tokens": [1, 2], "max_tokens": 12, "ignore_eos": true, "temperature": 1, "seed": 5}
{"id": "c", "tokens": [1, 2], "max_tokens": 12, "ignore_eos": true, "temperature": 1, "seed": 6}
{"id": "d", "tokens": [1, 2], "max_tokens": 4, "ignore_eos": true, "temperature": 1, "seed": 5, "n": 3}
{"id": "e", "tokens": [1, 2], "max_tokens": 3, "ignore_eos": true, "logit_bias": {"77": 100}}
{"id": "f", "tokens": [1, 2], "max_tokens": 3, "logit_bias": {"77": 100}, "stop_tokens": [77]}
{"id": "g", "tokens": [1, 2], "max_tokens": 3, "logit_bias": {"77": 100}, "stop_tokens": [77], "min_tokens": 2}
{"id": "h", "tokens": [1, 2], "max_tokens": 2, "ignore_eos": true, "logit_bias": {"77": 100}, "banned_tokens": [77]}
{"id": "i", "tokens": [1, 2], "max_tokens": 2, "ignore_eos": true, "logprobs": 3}
{"id": "j", "tokens": [1, 2], "max_tokens": 2, "ignore_eos": true, "logprobs": 0}
{"id": "k", "tokens": [1, 2], "max_tokens": 0}
{"id": "l", "tokens": [1, 2], "max_tokens": 400, "ignore_eos": true, "timeout_ms": 1}
{"id": "m", "tokens": [1, 2], "max_tokens": 12, "ignore_eos": true, "temperature": 1, "seed": "5"}
{"id": "o", "tokens": [1, 2], "max_tokens": 12, "ignore_eos": true, "temperature": 1, "seed": "18446744073709551615"}
LINES
batch <"$tmp/in"
same "the exit code" 0 "$code"
of() { json id "$2" <<<"$out" | sed -n "s/^$1	//p"; }
same "b" "$(of a tokens)" "$(of b tokens)"
[ "$(of a tokens)" != "$(of c tokens)" ] || bad "seeds 5 and 6 give the same"
same "a seed as a string" "$(of a tokens)" "$(of m tokens)"
[ "$(of a tokens)" != "$(of o tokens)" ] || bad "seeds 5 and 2^64-1 give the same"
same "completions" 3 "$(of d completions.#)"
same "d's first" "$(of d completions.0.tokens)" "$(of d tokens)"
[ "$(of d completions.0.tokens)" != "$(of d completions.1.tokens)" ] || bad "two completions are the same"
same "all completions' tokens" 12 "$(of d usage.completion_tokens)"
same "e" "[77,77,77]" "$(of e tokens)"
same "f" "[77]	stop_token" "$(of f tokens)	$(of f finish_reason)"
same "g" "3	stop_token" "$(of g tokens.#)	$(of g finish_reason)"
has "h" "length" "$(of h finish_reason)"
[[ "$(of h tokens)" != *77* ]] || bad "a banned token was generated"
same "i's log-probabilities, of each place" "2	3" "$(of i logprobs.#)	$(of i logprobs.0.top.#)"
same "i's likeliest is the greedy one" "$(of i tokens.0)" "$(of i logprobs.0.top.0.token)"
same "i's log-probability" "$(of i logprobs.0.logprob)" "$(of i logprobs.0.top.0.logprob)"
same "j's" "2	-" "$(of j logprobs.#)	$(of j logprobs.0.top)"
same "k" "[]	length" "$(of k tokens)	$(of k finish_reason)"
same "l" timeout "$(of l finish_reason)"

t "results stream: an answer comes before the next question is asked"
coproc talk { "$perch" batch "${model[@]}" 2>/dev/null; }
talk_pid=$talk_PID
for turn in 1 2 3; do
    printf '{"id": %d, "session": "s", "tokens": [%d], "max_tokens": 2, "ignore_eos": true}\n' "$turn" "$turn" >&"${talk[1]}"
    if ! read -r line <&"${talk[0]}"; then
        bad "no answer to turn $turn"
        break
    fi
    same "the id of answer $turn" "$turn" "$(json id <<<"$line")"
done
eval "exec ${talk[1]}>&-"
wait "$talk_pid"
same "the exit code" 0 $?

# pipes: $pid is a perch batch that reads what is written to descriptor 9; what it answers is read from 8.
pipes() {
    rm -f "$tmp/questions" "$tmp/answers"
    mkfifo "$tmp/questions" "$tmp/answers"
    "$perch" batch "${model[@]}" "$@" <"$tmp/questions" >"$tmp/answers" 2>"$tmp/err" &
    pid=$!
    exec 9>"$tmp/questions" 8<"$tmp/answers"
}

t "a reader that goes away ends it quietly with exit code 1"
pipes
head -n 1 "$tmp/many" >&9
read -r line <&8
same "what it read" "$(head -n 1 <<<"$many")" "$line"
exec 8<&-
cat "$tmp/many" >&9
wait "$pid"
same "the exit code" 1 $?
exec 9>&-
same "stderr" "" "$(cat "$tmp/err")"
if [ -w /dev/full ]; then
    "$perch" batch "${model[@]}" <"$tmp/many" >/dev/full 2>"$tmp/err"
    same "the exit code of a full disk" 1 $?
    has "its error" "cannot write to stdout" "$(cat "$tmp/err")"
fi

t "Ctrl-C ends what runs, prints what it has, and the exit code is 130"
pipes engine.max_batch_size=4
# Less than a pipe takes at once, so that perch has read all of it when it answers the first.
{
    printf '{"id": 0, "tokens": [1], "max_tokens": 1, "ignore_eos": true}\n'
    for i in $(seq 1 50); do
        printf '{"id": %d, "tokens": [1], "max_tokens": 500, "ignore_eos": true}\n' "$i"
    done
} >"$tmp/in"
n_bytes=$(wc -c <"$tmp/in")
[ "$n_bytes" -le 4096 ] || bad "$n_bytes bytes are more than one piece"
cat "$tmp/in" >&9
read -r line <&8
same "what is answered before" 0 "$(json id <<<"$line")"
kill -INT "$pid"
cat <&8 >"$tmp/out"
wait "$pid"
same "the exit code" 130 $?
exec 9>&- 8<&-
same "every line that is there is whole" "$(wc -l <"$tmp/out")" "$(json id <"$tmp/out" | wc -l)"
[ "$(json finish_reason <"$tmp/out" | grep -c cancelled)" -gt 0 ] || bad "nothing was cancelled: $(tail -n 1 "$tmp/out")"

t "score sums what the log-probabilities of single tokens say"
cat >"$tmp/in" <<'LINES'
{"id": "x", "tokens": [1, 2, 3]}
{"tokens": [1]}
{"id": "y", "text": "x"}
{"id": "z", "tokens": [1, 2], "max_tokens": 3}
LINES
printf '{"tokens": [1%s]}\n{"tokens": [1%s]}\n' "$(printf ',1%.0s' $(seq 511))" "$(printf ',1%.0s' $(seq 512))" >>"$tmp/in"
run "$perch" score "${model[@]}" <"$tmp/in"
same "the exit code" 1 "$code"
same "n_tokens" "$(printf '%s\n' 2 0 - - 511 -)" "$(json n_tokens <<<"$out")"
has "the error of y" "tokenizer" "$(json error.message <<<"$out" | sed -n 3p)"
has "the error of z" "unknown field 'max_tokens'" "$(json error.message <<<"$out" | sed -n 4p)"
same "the error of what is too long" "the text's 513 tokens exceed session_len = 512" "$(json error.message <<<"$out" | sed -n 6p)"
nll=$(json nll <<<"$out" | sed -n 1p)
printf '%s\n' '{"tokens": [1], "max_tokens": 1, "logprobs": 0, "logit_bias": {"2": 100}, "ignore_eos": true}' \
    '{"tokens": [1, 2], "max_tokens": 1, "logprobs": 0, "logit_bias": {"3": 100}, "ignore_eos": true}' >"$tmp/in"
batch <"$tmp/in"
same "the tokens" "$(printf '[2]\n[3]')" "$(json tokens <<<"$out")"
sum=$(json logprobs.0.logprob <<<"$out" | awk '{ s -= $1 } END { printf "%.9g", s }')
awk -v a="$nll" -v b="$sum" 'BEGIN { exit !((a - b) < 1e-5 && (b - a) < 1e-5) }' || bad "$nll is not $sum"

finish
