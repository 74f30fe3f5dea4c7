#!/usr/bin/env bash
# Checks that headers stand on their own: each compiles alone as C11; perch.h and those that device code will see (base/,
# kernels/kernels.h, kernels/cuda/) also as C++17. NAME_body.h is no header but a body, compiled once for each file that
# includes it.
# usage: headers.sh CC [CXX [CUDA]]   from the source folder; CUDA: the folder of its headers. Without a C++ compiler or that
#                                     folder the checks that need it are skipped
set -euo pipefail
cc=$1
cxx=${2:-}
cuda=${3:-}
flags=(-Wall -Wextra -Wpedantic -Wshadow -Werror -D_GNU_SOURCE -I. -Iinclude -fsyntax-only)
if [ -n "$cuda" ]; then
    flags+=(-isystem "$cuda")
fi
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

skip() { # name, reason
    skipped=$((skipped + 1))
    echo "skip headers/$1: $2"
}

# lacks HEADER: whether it is of CUDA and there is none.
lacks() { [[ -z "$cuda" && "$1" == */cuda/* ]]; }

while read -r header; do
    if lacks "$header"; then
        skip "$header alone as C11" "CUDA's headers were not found"
        continue
    fi
    check "$header alone as C11" "$cc" -std=c11 -Wstrict-prototypes "${flags[@]}" -x c -include "$header" /dev/null
done < <(find . -path ./build -prune -o -name '*.h' -not -name '*_body.h' -print | sed 's|^\./||' | sort)

for header in include/perch/perch.h base/*.h kernels/kernels.h kernels/cuda/*.h tests/support/check.h; do
    [[ "$header" == *_body.h ]] && continue
    if [ -z "$cxx" ]; then
        skip "$header alone as C++17" "no C++ compiler"
    elif lacks "$header"; then
        skip "$header alone as C++17" "CUDA's headers were not found"
    else
        check "$header alone as C++17" "$cxx" -std=c++17 "${flags[@]}" -x c++ -include "$header" /dev/null
    fi
done

echo "headers: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
