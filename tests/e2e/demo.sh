#!/usr/bin/env bash
# The demo as a user runs it: its log, its screen, its verdict when all is right and when it is not. Each conversation counts.
. "$(dirname "$0")/../cli/lib.sh"
demo=$1
talks=tools/demo-data/conversations.jsonl
n=12
if awk -v scale="${PERCH_TEST_SCALE:-1}" 'BEGIN { exit scale >= 1 }'; then
    n=5 # the least that don't fit the memory of three
fi

# refused PART ARGUMENT...: exit code 2 and one line on stderr that has PART.
refused() {
    local part=$1
    shift
    run "$demo" "$@"
    same "the exit code of perch-demo $*" 2 "$code"
    same "the output of perch-demo $*" "" "$out"
    same "the number of lines on stderr of perch-demo $*" 1 "$(wc -l <"$tmp/err")"
    has "the error of perch-demo $*" "perch-demo: " "$err"
    has "the error of perch-demo $*" "$part" "$err"
}

# figure NAME: both columns of a row of the table in $out, with a tab between them.
figure() {
    sed -nE "s/^ *$1 {2,}(.*[^ ]) {2,}(.*)\$/\1\t\2/p" <<<"$out"
}

t "$n conversations in the memory of three end as in memory for all"
run "$demo" --conversations "$n" --transcript "$tmp/tight"
log=$out
same "the exit code" 0 "$code"
same "stderr" "" "$err"
head -n "$n" "$talks" >"$tmp/talks"
n_turns=$(json turns.# <"$tmp/talks" | awk '{ n += $1 } END { print n }')
same "the answers that are right" "$n_turns of $n_turns	$n_turns of $n_turns" "$(figure 'answers right')"
same "KV memory" "6.00 MiB	$((2 * n)).00 MiB" "$(figure 'KV memory')"
same "conversations evicted" "$n	0" "$(figure 'conversations evicted')"
same "evictions with memory for all" 0 "$(figure evictions | cut -f 2)"
[ "$(figure evictions | cut -f 1)" -ge $((8 * n)) ] || bad "too little was evicted: $(figure evictions)"
same "requests by what was there at admission" "$((n_turns - n))" \
    "$(($(figure hits | cut -f 1) + $(figure 'partial hits' | cut -f 1) + $(figure misses | cut -f 1)))"
bytes=$(wc -c <"$tmp/tight")
same "transcript bytes" "$bytes	$bytes" "$(figure 'transcript bytes')"
read -r hash full_hash <<<"$(figure 'transcript FNV-1a')"
same "the second transcript's hash" "$hash" "$full_hash"
has "the verdict" "all right: every answer, transcripts identical; " "$(tail -n 1 <<<"$out")"

number=0
while IFS=$'\t' read -r name turns; do
    number=$((number + 1))
    t "$name: every answer is as expected, every fact remembered, though it was evicted"
    lines=$(grep "^$name turn" <<<"$log" | grep "  cached ")
    n_facts=$(sed -n "${number}p" "$talks" | grep -o '"check": "' | wc -l)
    same "fact questions that were right" "$n_facts" "$(grep -c "  right  " <<<"$lines")"
    same "what is wrong" "" "$(grep "^wrong, .*: $name " <<<"$log")"
    last=$(tail -n 1 <<<"$lines")
    [[ "$last" =~ evicted\ +([0-9]+)\ times ]] && [ "${BASH_REMATCH[1]}" -ge 2 ] || bad "was hardly evicted: $last"
    paths=()
    for i in $(seq 0 $((turns - 1))); do
        paths+=("turns.$i.assistant")
    done
    sed -n "${number}p" "$talks" | json "${paths[@]}" | tr '\t' '\n' >"$tmp/expected"
    awk -v name="# $name" '/^# / { on = $0 == name } on && sub(/^assistant: /, "")' "$tmp/tight" >"$tmp/found"
    cmp -s "$tmp/expected" "$tmp/found" || bad "the transcript is not the file's: $(diff "$tmp/expected" "$tmp/found")"
done < <(json name turns.# <"$tmp/talks")

t "three in the memory of one, with more slots, one thread, short steps: their transcript is the same"
run "$demo" --conversations 3 --transcript "$tmp/one" cache.cache_max_entry_count=1 engine.max_batch_size=8 \
    engine.max_step_tokens=48 parallel.threads=1
same "the exit code" 0 "$code"
same "KV memory" "2.00 MiB" "$(figure 'KV memory' | cut -f 1)"
same "conversations evicted" 3 "$(figure 'conversations evicted' | cut -f 1)"
cmp -s <(head -c "$(wc -c <"$tmp/one")" "$tmp/tight") "$tmp/one" || bad "the transcript differs"

t "a wrong answer is shown, and the exit code says so"
sed -n '1s/"assistant": "Welcome back\."/"assistant": "Welcome home."/p' "$talks" >"$tmp/wrong.jsonl"
run "$demo" --data "$tmp/wrong.jsonl"
same "the exit code" 1 "$code"
has "the output" "You" "$out"
has "the output" "got \"Welcome back.\", not \"Welcome home.\"" "$out"
has "the verdict" "FAILED: 2 wrong answers, transcripts identical" "$(tail -n 1 <<<"$out")"

t "where nothing is evicted the verdict says so"
run "$demo" --conversations 1
same "the exit code" 0 "$code"
has "the verdict" "nothing was evicted" "$(tail -n 1 <<<"$out")"

t "a signal ends it with 130"
"$demo" >"$tmp/interrupted" 2>"$tmp/err" &
pid=$!
wait_for grep -qs "^evicting: " "$tmp/interrupted"
kill -TERM "$pid" # a script's background jobs ignore SIGINT to begin with; the demo treats both alike
wait "$pid"
same "the exit code" 130 "$?"
same "stderr" "perch-demo: interrupted" "$(cat "$tmp/err")"

t "on a terminal it draws a screen and gives the terminal back"
if ! script -qec true /dev/null </dev/null >/dev/null 2>&1; then
    skip "there is no script(1) that gives a terminal"
else
    TERM=xterm LC_ALL=C.UTF-8 script -qec "stty cols 80 rows 24; '$demo' --conversations 2" /dev/null </dev/null >"$tmp/out" 2>&1
    same "the exit code" 0 "$?"
    screen=$(sed 's/\x1b\[?1049l.*/\x1b[?1049l/' "$tmp/out")
    has "the screen" $'\x1b[?1049h\x1b[?25l' "$screen"
    has "its end" $'\x1b[?25h\x1b[?1049l' "$screen"
    for part in "perch demo" "2 conversations in the memory of 3" "slots" "pages" " live" " cached" "evictions 0" \
        "partial hits 0" "misses 0" "preemptions 0" "prefill " "re-prefilled 0 tokens"; do
        has "the screen" "$part" "$screen"
    done
    has "what stands there afterwards" "all right: every answer" "$(tail -n 1 "$tmp/out")"
fi

t "wrong flags, files and keys are one line and exit code 2"
refused "'--sing'" --sing
refused "'word'" word
refused "--data needs a value" --data
refused "not many" --conversations many
refused "not 0" --conversations 0
refused "has only 16" --conversations 17
refused "/no/such.jsonl" --data /no/such.jsonl
refused "/no/such.ini" --config /no/such.ini
refused "[engine] sing: unknown key" engine.sing=1
refused "/no/model" model.path=/no/model

t "a broken line of conversations is named with its number and the reason"
broken() { # part, second line
    { head -n 1 "$talks" && echo "$2"; } >"$tmp/broken.jsonl"
    refused "$tmp/broken.jsonl:2: $1" --data "$tmp/broken.jsonl"
}
broken "" '{"name": '
broken '"name" must be' '{"turns": []}'
broken '"turns" must be' '{"name": "a", "turns": []}'
broken 'turn 1: "user" and "assistant"' '{"name": "a", "turns": [{"user": "Hello!", "check": null}]}'
broken 'turn 1: "check" must be' '{"name": "a", "turns": [{"user": "a", "assistant": "b", "check": 3}]}'
broken 'turn 1: "Milo" is not in' '{"name": "a", "turns": [{"user": "a", "assistant": "b", "check": "Milo"}]}'
: >"$tmp/broken.jsonl"
refused "no conversations" --data "$tmp/broken.jsonl"

t "--help tells of every flag"
run "$demo" --help
same "the exit code" 0 "$code"
for part in --conversations --data --config --transcript section.key=value; do
    has "the help" "$part" "$out"
done

finish
