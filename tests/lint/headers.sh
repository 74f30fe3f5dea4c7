#!/usr/bin/env bash
# Checks that headers stand on their own: each compiles alone as C11; perch.h and those that device code will see (base/,
# kernels/kernels.h) also as C++17. NAME_body.h is no header but a body, compiled once for each file that includes it.
# usage: headers.sh CC [CXX]   from the source folder; without a C++ compiler its checks are skipped
set -euo pipefail
cc=$1
cxx=${2:-}
flags=(-Wall -Wextra -Wpedantic -Wshadow -Werror -D_GNU_SOURCE -I. -Iinclude -fsyntax-only)
passed=0
failed=0
skipped=0

check() { # name, compiler and flags...
    local name=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
        echo "ok   headers/$name"
    else
        failed=$((failed + 1))
        echo "FAIL headers/$name"
    fi
}

while read -r header; do
    check "$header alone as C11" "$cc" -std=c11 -Wstrict-prototypes "${flags[@]}" -x c -include "$header" /dev/null
done < <(find . -path ./build -prune -o -name '*.h' -not -name '*_body.h' -print | sed 's|^\./||' | sort)

for header in include/perch/perch.h base/*.h kernels/kernels.h; do
    if [ -z "$cxx" ]; then
        skipped=$((skipped + 1))
        echo "skip headers/$header alone as C++17: no C++ compiler"
    else
        check "$header alone as C++17" "$cxx" -std=c++17 "${flags[@]}" -x c++ -include "$header" /dev/null
    fi
done

echo "headers: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
