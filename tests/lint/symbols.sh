#!/usr/bin/env bash
# Checks the dynamic symbols of libperch.so: it exports exactly what perch.h declares with PERCH_API, and it calls nothing
# that would end the process or print on its own.
# usage: symbols.sh HEADER LIBRARY
set -euo pipefail
header=$1
library=$2
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
passed=0
failed=0

result() { # name, condition's exit code
    if [ "$2" -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok   symbols/$1"
    else
        failed=$((failed + 1))
        echo "FAIL symbols/$1"
    fi
}

# Each declaration runs from PERCH_API to its parameter list; the last word before that is the name.
sed -e '/^[ \t]*#/d' "$header" | tr '\n' ' ' | sed -e 's|/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/| |g' |
    grep -o 'PERCH_API [^(;]*(' | sed -e 's/ *($//' -e 's/.*[ *]//' | sort >"$scratch/declared"
nm -D --defined-only --format=posix "$library" | awk '$2 != "A" { sub(/@.*/, "", $1); print $1 }' | sort >"$scratch/exported"

test -s "$scratch/declared"
result "the header declares functions" $?
diff -u --label "declared in perch.h" --label "exported by the library" "$scratch/declared" "$scratch/exported" && same=0 || same=1
result "exports exactly what perch.h declares" "$same"

nm -D --undefined-only --format=posix "$library" | awk '{ sub(/@.*/, "", $1); print $1 }' | grep -x -E \
    'exit|_exit|_Exit|quick_exit|abort|raise|kill|err|errx|warn|warnx|error|perror|psignal|(__)?v?printf(_chk)?|puts|putchar|stdout|stderr' \
    >"$scratch/calls" && calls=1 || calls=0
sed 's/^/  calls /' "$scratch/calls"
result "never exits, aborts or prints" "$calls"

echo "symbols: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
