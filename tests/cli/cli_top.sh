#!/usr/bin/env bash
# perch top: finds the engines that run, says what they do, and leaves a terminal as it was.
. "$(dirname "$0")/lib.sh"
export XDG_RUNTIME_DIR=$tmp/run LC_ALL=C.UTF-8
mkdir "$tmp/run"
folder=$tmp/run/perch

# start NAME KEY=VALUE...: an engine that has work until it is stopped; its process in $pid.
start() {
    local name=$1
    shift
    "$perch" bench configs/bench-churn.ini bench.turns=100000000 "$@" >"$tmp/$name.out" 2>"$tmp/$name.err" &
    pid=$!
    pids+=("$pid")
}

stop() {
    local one
    for one in "${pids[@]}"; do
        kill -INT "$one" 2>/dev/null
        wait "$one" 2>/dev/null
    done
    pids=()
}
pids=()
trap 'stop; rm -rf "$tmp"' EXIT

# Whether the engine's file says that it has computed something.
works() {
    "$perch" top "$1" --once --json --interval 0.05 >"$tmp/top.json" 2>"$tmp/err" &&
        [ "$(json 0.stats.requests_finished <"$tmp/top.json")" -gt 0 ]
}

t "without an engine it says so, and where it looked"
run "$perch" top --once
same "the exit code" 1 "$code"
same "the output" "" "$out"
has "the error" "perch top: no engine keeps statistics in $folder" "$err"
run "$perch" top 123456
same "the exit code" 1 "$code"
has "the error" "no engine of process 123456" "$err"

t "what is no statistics file, and wrong words, are refused by name"
run "$perch" top "$tmp/no-file"
same "the exit code" 1 "$code"
has "the error" "cannot open $tmp/no-file: No such file" "$err"
wrong "configs/demo.ini is no statistics file" top configs/demo.ini
wrong "--interval: 'soon' is no number of seconds in 0.05..3600" top --interval soon
wrong "--interval: '0' is" top --interval 0
wrong "--interval: '1s' is" top --interval 1s
wrong "unexpected argument 'b'" top a b

t "an engine with stats_file = auto is found, and its numbers are those of an engine at work"
start one engine.stats_file=auto cache.host_bytes=8M
one=$pid
wait_for works "$one" || bad "the engine ended: $(cat "$tmp/one.err")"
run "$perch" top --once --interval 0.3 --json
same "the exit code" 0 "$code"
same "engines, the process, whether it runs" "1	$one	true" "$(json "#" 0.pid 0.running <<<"$out")"
same "the model and the version" "tiny	$("$perch" --version | cut -d ' ' -f 2)" "$(json 0.model 0.version <<<"$out")"
same "its file" "$folder/$one" "$(json 0.file <<<"$out")"
read -r live cached free all <<<"$(json 0.stats.pages_live 0.stats.pages_cached 0.stats.pages_free 0.stats.pages_total <<<"$out")"
same "the pages" "$all" "$((live + cached + free))"
for rate in prefill_tokens decode_tokens requests step_ms; do
    value=$(json "0.rates.$rate" <<<"$out")
    awk -v v="$value" 'BEGIN { exit !(v > 0) }' || bad "the rate of $rate is $value"
done

t "one look in words, by process and by file"
run "$perch" top "$one" --once --interval 0.1
same "the exit code" 0 "$code"
for part in "tiny  process $one" "rows " "sequences " "pages " " live" " cached" "prefill " "decode " "TTFT " "evictions " "to the host"; do
    has "the frame" "$part" "$out"
done
[[ "$out" != *$'\033'* ]] || bad "there are control codes in what is no terminal"
run "$perch" top "$folder/$one" --once --interval 0.1
has "the same by its file" "process $one" "$out"
run "$perch" top engine.stats_file="$folder/$one" --once --interval 0.1
has "the same by the option" "process $one" "$out"

t "where stdout is no terminal a frame is printed for each look, until Ctrl-C"
: >"$tmp/frames"
"$perch" top --interval 0.05 >>"$tmp/frames" 2>"$tmp/err" &
pid=$!
three() { [ "$(grep -c "^$1 " "$tmp/frames")" -ge 3 ]; }
wait_for three rows || bad "it ended: $(cat "$tmp/err")"
kill -TERM "$pid"
wait "$pid"
same "the exit code" 130 "$?"

t "several engines are a table, and one of them is shown by its number"
start two engine.stats_file=auto
two=$pid
wait_for works "$two" || bad "the engine ended: $(cat "$tmp/two.err")"
run "$perch" top --once --interval 0.1
same "the lines" 2 "$(grep -cE "^($one|$two) " <<<"$out")"
run "$perch" top "$two" --once --interval 0.1 --json
same "the one" "1	$two" "$(json "#" 0.pid <<<"$out")"

terminal() { # END: what ends it
    run "$helpers/cli_terminal" "$tmp/drawn" "$1" "$perch" top --interval 0.1
    same "the exit code of the helper" 0 "$code"
    read -r ended settings rest frames <<<"$(tr '\t' ' ' <<<"$out")"
    drawn=$(cat "$tmp/drawn")
}

t "on a terminal it draws over itself, follows its size, and leaves it as it was: q, Ctrl-C, SIGTERM"
for end in q INT TERM; do
    terminal "$end"
    same "the exit code after $end" "$([ "$end" = q ] && echo 0 || echo 130)" "$ended"
    same "the terminal after $end" "as before" "$settings $rest"
    has "what was drawn first" $'\033[?1049h\033[?25l' "$drawn"
    same "what was drawn last" $'\033[?25h\033[?1049l' "${drawn: -14}"
    [ "$frames" -ge 2 ] || bad "it drew $frames frames"
done
longest=$(awk -v RS='\033[[]2J\033[[]H' 'END { print }' "$tmp/drawn" | sed 's/\x1b\[[0-9;?]*[A-Za-z]//g; s/\r//g' | wc -L)
[ "$longest" -le 59 ] || bad "a line of $longest columns on a terminal of 60"

t "it ends by itself when the last engine does"
: >"$tmp/frames"
"$perch" top --interval 0.05 >>"$tmp/frames" 2>"$tmp/err" &
pid=$!
pids+=("$pid")
wait_for three process || bad "it ended: $(cat "$tmp/err")"
kill -INT "$one" "$two"
wait "$one" "$two"
wait "$pid"
same "the exit code" 0 "$?"
has "what it says" "no engine is left" "$(cat "$tmp/err")"
same "what is left in the folder" "" "$(ls "$folder")"
pids=()

t "what a killed engine leaves is told from one that runs, and tidied up by the next"
start killed engine.stats_file=auto
wait_for works "$pid" || bad "the engine ended: $(cat "$tmp/killed.err")"
kill -KILL "$pid"
wait "$pid" 2>/dev/null
run "$perch" top --once
same "the exit code of a look at all" 1 "$code"
run "$perch" top "$pid" --once --interval 0.05
has "the frame" "its process is gone" "$out"
run "$perch" top "$pid" --once --interval 0.05 --json
same "whether it runs" false "$(json 0.running <<<"$out")"
killed=$pid
start next engine.stats_file=auto
wait_for works "$pid" || bad "the engine ended: $(cat "$tmp/next.err")"
[ ! -e "$folder/$killed" ] || bad "the dead one's file is still there"
stop

t "two engines cannot have one file"
start first engine.stats_file="$tmp/one-file"
wait_for works "$tmp/one-file" || bad "the engine ended: $(cat "$tmp/first.err")"
run "$perch" bench configs/bench-churn.ini bench.turns=1 engine.stats_file="$tmp/one-file"
same "the exit code" 1 "$code"
has "the error" "[engine] stats_file: $tmp/one-file is another engine's" "$err"
stop

finish
