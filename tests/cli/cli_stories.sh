#!/usr/bin/env bash
# The command on a trained model (stories260K of the shared data): texts, tokens and likelihoods that are known.
. "$(dirname "$0")/lib.sh"
stories=$shared/stories260K
if [ ! -d "$stories" ]; then
    t "all of it"
    skip "no shared data"
    finish
fi
model=(--model "$stories")
expected() { json "$@" <"$stories/expected.json"; }
prompt=$(expected prompt)
text=$(expected text)
completion=${text#"$prompt"}

t "generate at temperature 0 streams the expected completion, byte for byte, and nothing else"
run "$perch" generate "${model[@]}" --prompt "$prompt" --max-tokens 60 --temperature 0
same "the exit code" 0 "$code"
printf %s "$completion" | cmp -s - "$tmp/out" || bad "it is '$out'"
same "stderr" "" "$err"

t "greedy, 256 tokens and the whole machine are the defaults"
run "$perch" generate "${model[@]}" --prompt "$prompt" --json
same "the exit code" 0 "$code"
same "the tokens" 256 "$(json usage.completion_tokens <<<"$out")"
has "the text" "$completion" "$(json completions.0.text <<<"$out")"
run "$perch" generate "${model[@]}" --prompt "$prompt" --json engine.session_len=64
same "what session_len = 64 leaves" 59 "$(json usage.completion_tokens <<<"$out")"

t "the prompt comes from a file or from stdin as well"
printf %s "$prompt" >"$tmp/prompt"
run "$perch" generate "${model[@]}" --prompt-file "$tmp/prompt" --max-tokens 60
same "from a file" "$completion" "$out"
run "$perch" generate "${model[@]}" --prompt-file - --max-tokens 60 <"$tmp/prompt"
same "from stdin" "$completion" "$out"

t "batch gives the expected tokens, from text and from tokens, whatever the steps and threads"
cat >"$tmp/in" <<LINES
{"id": "text", "prompt": "$prompt", "max_tokens": 60, "temperature": 0}
{"id": "tokens", "tokens": $(expected prompt_ids), "max_tokens": 60, "temperature": 0}
LINES
for with in model.dtype=auto model.dtype=f32 "engine.max_step_tokens=33 engine.max_batch_size=1 parallel.threads=1"; do
    # shellcheck disable=SC2086
    run "$perch" batch "${model[@]}" $with <"$tmp/in"
    same "the exit code" 0 "$code"
    same "the tokens with $with" "$(expected generated_ids generated_ids | tr '\t' '\n')" "$(json tokens <<<"$out")"
    printf '%s\0' "$completion" "$completion" >"$tmp/wanted"
    json text <<<"$(head -n 1 <<<"$out")" | head -c -1 | cmp -s - <(printf %s "$completion") || bad "the text is $out"
    same "usage" "5	60" "$(json usage.prompt_tokens usage.completion_tokens <<<"$out" | sort -u)"
done

t "turns of a session remember, though all but one are evicted: as if each had been alone"
for turn in "One day, Tom" " The dog said:" " Then they" " In the end"; do
    for s in a b c d e f; do
        printf '{"session": "%s", "prompt": "%s", "max_tokens": 30, "ignore_eos": true, "temperature": 0.7, "seed": %d}\n' \
            "$s" "$turn""$((16#$s))"
    done
done >"$tmp/in"
run "$perch" batch "${model[@]}" engine.session_len=256 cache.cache_max_entry_count=64 --stats --json <"$tmp/in"
same "the exit code" 0 "$code"
same "evictions with room for all" 0 "$(json evictions <<<"$err")"
roomy=$(json tokens text <<<"$out")
run "$perch" batch "${model[@]}" engine.session_len=256 cache.cache_max_entry_count=1 --stats --json <"$tmp/in"
same "with room for one" "$roomy" "$(json tokens text <<<"$out")"
[ "$(json evictions <<<"$err")" -gt 0 ] || bad "nothing was evicted"

t "score over the perplexity protocol gives the mean that is expected"
if "$helpers/cli_blocks" "$shared/$(expected perplexity.text)" 512 400 >"$tmp/blocks"; then
    run "$perch" score "${model[@]}" <"$tmp/blocks"
    same "the exit code" 0 "$code"
    read -r n mean <<<"$(json n_tokens nll <<<"$out" | awk '{ n += $1; s += $2 } END { printf "%d %.6f", n, s / n }')"
    same "the tokens" "$(expected perplexity.tokens)" "$n"
    awk -v a="$mean" -v b="$(expected perplexity.mean_nll)" 'BEGIN { exit !(a - b < 0.0005 && b - a < 0.0005) }' ||
        bad "the mean is $mean"
    echo "mean NLL $mean over $n tokens"
else
    bad "the text can't be cut into blocks"
fi

t "tokenize gives the ids that are expected, and --decode the text"
same "with BOS" "$(expected prompt_ids)" "$(printf %s "$prompt" | "$perch" tokenize "${model[@]}" --bos | json .)"
same "without" "$(expected prompt_ids | sed 's/^\[1,/[/')" "$(printf %s "$prompt" | "$perch" tokenize "${model[@]}" | json .)"
expected prompt_ids | "$perch" tokenize "${model[@]}" --decode >"$tmp/out"
printf %s "$prompt" | cmp -s - "$tmp/out" || bad "decoded: $(cat "$tmp/out")"
has "special tokens written out" "<s>" "$(expected prompt_ids | "$perch" tokenize "${model[@]}" --decode --special)"
same "special tokens in the text" "[1]" "$(printf '<s>' | "$perch" tokenize "${model[@]}" --special | json .)"
[ "$(printf '<s>' | "$perch" tokenize "${model[@]}" | json .)" != "[1]" ] || bad "<s> is special without being asked for"
head -c 100000 "$shared/text/tinystories_val.txt" >"$tmp/text"
"$perch" tokenize "${model[@]}" <"$tmp/text" | "$perch" tokenize "${model[@]}" --decode | cmp -s - "$tmp/text" ||
    bad "100,000 bytes do not survive the way and back"
same "nothing" "[]" "$("$perch" tokenize "${model[@]}" </dev/null | json .)"

t "tokenize --decode refuses what are no tokens"
for input in '[1, 2' '{"a": 1}' '[1, "2"]' '[512]' '[-1]' '[1.0]' ''; do
    run "$perch" tokenize "${model[@]}" --decode <<<"$input"
    same "the exit code of $input" 2 "$code"
    same "its output" "" "$out"
    same "the number of lines on stderr" 1 "$(wc -l <"$tmp/err")"
done

t "a stop string ends the text before it, across token borders; a stop token ends it behind"
run "$perch" generate "${model[@]}" --prompt "$prompt" --stop "outside in"
same "the text" "${completion%%outside in*}" "$out"
run "$perch" generate "${model[@]}" --prompt "$prompt" --stop zebra --stop "irl na"
same "the text" "${completion%%irl na*}" "$out"
run "$perch" generate "${model[@]}" --prompt "$prompt" --stop-tokens 376 --json
same "tokens, reason" "5	stop_token" "$(json completions.0.tokens.# completions.0.finish_reason <<<"$out")"
run "$perch" generate "${model[@]}" --prompt "$prompt" --stop "irl na" --json
same "the reason" stop_string "$(json completions.0.finish_reason <<<"$out")"

t "a seed is an answer: the same again, another with another seed"
warm=(generate "${model[@]}" --prompt "$prompt" --max-tokens 40 --temperature 1 --top-k 50 --top-p 0.95)
one=$("$perch" "${warm[@]}" --seed 1)
same "seed 1 again" "$one" "$("$perch" "${warm[@]}" --seed 1)"
[ "$one" != "$("$perch" "${warm[@]}" --seed 2)" ] || bad "seed 2 gives the same"
[ "$one" != "$completion" ] || bad "sampling is greedy"

t "several completions, log-probabilities and times in --json"
run "$perch" "${warm[@]}" -n 3 --logprobs 2 --json
same "the exit code" 0 "$code"
same "completions, tokens" "3	120" "$(json completions.# usage.completion_tokens <<<"$out")"
same "log-probabilities" "40	2" "$(json completions.2.logprobs.# completions.2.logprobs.0.top.# <<<"$out")"
same "the first is as alone" "$one" "$("$perch" "${warm[@]}" --seed 1 -n 2 --json | json completions.0.text)"
run "$perch" "${warm[@]}" -n 2
same "stderr where they differ" "" "$err"
same "parts of plain text" 2 "$(grep -c '^--- . of 2 (length)$' <<<"$out")"

run "$perch" generate "${model[@]}" --prompt "$prompt" --max-tokens 3 -n 2 --temperature 0
same "the exit code at temperature 0" 0 "$code"
has "the note" "all 2 completions are equal" "$err"

t "what does not fit is refused with exit code 2"
wrong "session_len" generate "${model[@]}" --prompt "$prompt" --max-tokens 600
wrong "temperature" generate "${model[@]}" --prompt "$prompt" --temperature -1
wrong "top_p" generate "${model[@]}" --prompt "$prompt" --top-p 1.5
wrong "stop_tokens" generate "${model[@]}" --prompt "$prompt" --stop-tokens 512
wrong "session_len" generate "${model[@]}" --prompt-file "$tmp/text"

# A completion of whole words that takes a second and more: time enough to break it off when its beginning is there.
words=$(printf '%d=100,' $(seq 300 320))
slow=(generate "${tiny[@]}" model.tokenizer_path="$stories" model.dtype=f32 parallel.threads=1 --prompt "$prompt" --ignore-eos
    --max-tokens 2000 --temperature 1 --seed 1 --logit-bias "${words%,}")
"$perch" "${slow[@]}" >"$tmp/whole"

t "Ctrl-C ends a completion with what there is, and exit code 130"
"$perch" "${slow[@]}" >"$tmp/out" 2>"$tmp/err" &
pid=$!
wait_for test -s "$tmp/out"
kill -INT "$pid"
wait "$pid"
same "the exit code" 130 $?
same "stderr" "" "$(cat "$tmp/err")"
n_bytes=$(stat -c %s "$tmp/out")
[ "$n_bytes" -lt "$(stat -c %s "$tmp/whole")" ] || bad "nothing is missing"
cmp -s "$tmp/out" <(head -c "$n_bytes" "$tmp/whole") || bad "it is not the beginning of the whole"

t "a reader that goes away ends generate quietly with exit code 1"
{
    "$perch" "${slow[@]}" 2>"$tmp/err"
    echo $? >"$tmp/code"
} | head -c 5 >"$tmp/out"
cmp -s "$tmp/out" <(head -c 5 "$tmp/whole") || bad "it read '$(cat "$tmp/out")'"
same "stderr" "" "$(cat "$tmp/err")"
same "the exit code" 1 "$(cat "$tmp/code")"

t "chat from a pipe prints one answer a turn and nothing else"
printf '%s\n' "$prompt" "" "And then" /exit "not read" >"$tmp/in"
run "$perch" chat "${model[@]}" --format plain --max-tokens 20 --stop $'\n' <"$tmp/in"
same "the exit code" 0 "$code"
same "stderr" "" "$err"
same "the lines" 2 "$(wc -l <"$tmp/out")"
printf '%s\n' "$prompt" /reset "$prompt" >"$tmp/in"
run "$perch" chat "${model[@]}" --format plain --max-tokens 20 --stop $'\n' <"$tmp/in"
same "after /reset" "$(sed -n 1p "$tmp/out")" "$(sed -n 2p "$tmp/out")"
printf '%s\n' /help /stats /sing >"$tmp/in"
run "$perch" chat "${model[@]}" --format plain <"$tmp/in"
same "the output of commands" "" "$out"
has "the help" "/reset" "$err"
has "the statistics" "conversation: 0 of 512 tokens" "$err"
has "an unknown command" "unknown command /sing" "$err"
printf '%s\n' "$prompt" And And And And And And And /reset "$prompt" >"$tmp/in"
run "$perch" chat "${model[@]}" --format plain --max-tokens 20 --ignore-eos engine.session_len=40 <"$tmp/in"
same "the exit code after a full session" 1 "$code"
same "the first answer and the one after /reset" "$(sed -n 1p <<<"$out")" "$(tail -n 1 <<<"$out")"
has "the error" "session" "$err"
has "the error" "/reset" "$err"
run "$perch" chat "${model[@]}" --format plain --max-tokens 20 --json <<<"$prompt"
same "the exit code with --json" 0 "$code"
same "tokens, reason" "20	length	20" "$(json tokens.# finish_reason usage.completion_tokens <<<"$out")"
wrong "--max-tokens" chat "${model[@]}" --format plain --max-tokens 600
wrong "format" chat "${model[@]}" --format klingon <<<"x"

t "the minimal host prints the expected completion"
run "$minimal" "$stories" "$prompt"
same "the exit code" 0 "$code"
same "its text" "$completion" "$out"
run "$minimal" /no/such/model x
same "the exit code without a model" 1 "$code"
[ "$(wc -l <tools/examples/minimal.c)" -lt 40 ] || bad "it has 40 lines or more"

finish
