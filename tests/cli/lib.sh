# What the scripts here share; sourced with the script's arguments: the command, the folder of cli_json and cli_blocks, the
# minimal host.
# A test is a line `t NAME`, then checks. A script ends with `finish`, which prints "NAME: N passed, N failed, N skipped".
set -uo pipefail
perch=$1
helpers=$2
minimal=$3
suite=$(basename "$0" .sh)
shared=../shared/data
tiny=(--model configs/shapes/tiny model.weights=random)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

n_passed=0 n_failed=0 n_skipped=0
test_name="" test_bad=0 test_skip=""

end_test() {
    if [ -z "$test_name" ]; then
        return
    elif [ "$test_bad" -gt 0 ]; then
        n_failed=$((n_failed + 1))
    elif [ -n "$test_skip" ]; then
        n_skipped=$((n_skipped + 1))
    else
        n_passed=$((n_passed + 1))
    fi
}

# t NAME: begins a test; NAME says what it proves.
t() {
    end_test
    test_name=$1 test_bad=0 test_skip=""
}

# skip REASON: the running test counts as skipped.
skip() {
    echo "skip $suite: $test_name: $1"
    test_skip=$1
}

bad() {
    echo "FAIL $suite: $test_name: $1"
    test_bad=$((test_bad + 1))
}

# same WHAT WANTED FOUND
same() {
    [ "$2" = "$3" ] || bad "$1 is '$3', not '$2'"
}

# has WHAT PART TEXT
has() {
    [[ "$3" == *"$2"* ]] || bad "$1 has no '$2': $3"
}

# run COMMAND...: its output in $out, what it said on stderr in $err, its exit code in $code. stdin is the caller's.
run() {
    "$@" >"$tmp/out" 2>"$tmp/err"
    code=$?
    out=$(cat "$tmp/out" | tr -d '\0')
    err=$(cat "$tmp/err")
}

# wrong PART ARGUMENT...: perch refuses them with exit code 2 and one line on stderr that has PART, and prints nothing.
wrong() {
    local part=$1
    shift
    run "$perch" "$@" </dev/null
    same "the exit code of 'perch $*'" 2 "$code"
    same "the output of 'perch $*'" "" "$out"
    same "the number of lines on stderr of 'perch $*'" 1 "$(wc -l <"$tmp/err")"
    has "the error of 'perch $*'" "$part" "$err"
    has "the error of 'perch $*'" "perch $1: " "$err"
}

# How long a machine takes is nobody's to know, so no test sleeps and hopes: it waits for what it needs to see.
# wait_for COMMAND...: runs it until it succeeds; false if the process $pid ended before. ctest's time limit is the only one.
wait_for() {
    until "$@"; do
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.02
    done
}

# catches_interrupt: the process $pid has a handler for SIGINT, the second bit of its mask. One that a script starts in the
# background ignores the signal until then.
catches_interrupt() {
    grep -qs '^SigCgt:.*[2367abef]$' "/proc/$pid/status"
}

# json PATH... < JSON: see json.c.
json() {
    "$helpers/cli_json" "$@"
}

finish() {
    end_test
    echo "$suite: $n_passed passed, $n_failed failed, $n_skipped skipped"
    if [ "$n_failed" -gt 0 ]; then
        exit 1
    elif [ "$n_passed" -eq 0 ]; then
        exit 77
    fi
    exit 0
}
