#!/usr/bin/env bash
# Installs a build into a folder of its own and is a host there: the right files and no others, a program built with
# pkg-config and one with CMake that both run, the header alone as C++17, the example host, the command.
# usage: install_test.sh BUILD_DIR CC [CXX]   from the source folder
set -euo pipefail
build=$1
cc=$2
cxx=${3:-}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Installed at one place, used at another: nothing may remember where it was.
first=$scratch/first
prefix=$scratch/moved
strict=(-std=c11 -Wall -Wextra -Wpedantic -Werror)
passed=0
failed=0
skipped=0

check() { # name, command...
    local name=$1
    shift
    if "$@" >"$scratch/output" 2>&1; then
        passed=$((passed + 1))
        echo "ok   install_test/$name"
    else
        failed=$((failed + 1))
        echo "FAIL install_test/$name"
        sed 's/^/  /' "$scratch/output"
    fi
}

skip() { # name, reason
    skipped=$((skipped + 1))
    echo "skip install_test/$1: $2"
}

install_and_move() {
    cmake --install "$build" --prefix "$first" && mv "$first" "$prefix"
}

# The list of installed files, with the version as X and the folder of libraries as lib.
files_are_right() {
    local version=$1 lib=$2 soversion=${1%%.*}
    (cd "$prefix" && find . -not -type d | sort) >"$scratch/found"
    {
        if [ -e "$build/bin/perch" ]; then
            echo ./bin/perch
        fi
        echo ./include/perch/perch.h
        for file in perchConfig.cmake perchConfigVersion.cmake perchTargets.cmake perchTargets-"$build_type".cmake; do
            echo "./$lib/cmake/perch/$file"
        done
        for file in libperch.so "libperch.so.$soversion" "libperch.so.$version" pkgconfig/perch.pc; do
            echo "./$lib/$file"
        done
    } | sort >"$scratch/expected"
    diff -u "$scratch/expected" "$scratch/found"
}

remembers_nothing() {
    ! grep -r -l -F -e "$first" -e "$(realpath "$build")" "$prefix"
}

with_pkg_config() { # source, program
    local flags
    flags=$(PKG_CONFIG_PATH=$prefix/$lib/pkgconfig pkg-config --cflags --libs perch) || return 1
    # shellcheck disable=SC2086 # flags are words
    "$cc" "${strict[@]}" "$1" -o "$2" $flags "-Wl,-rpath,$prefix/$lib"
}

with_cmake() {
    cmake -S tests/lint/consumer -B "$scratch/consumer" -G Ninja -DCMAKE_C_COMPILER="$cc" -DCMAKE_PREFIX_PATH="$prefix" &&
        cmake --build "$scratch/consumer"
}

build_type=$(sed -n 's/^CMAKE_BUILD_TYPE:[A-Z]*=//p' "$build/CMakeCache.txt" | tr '[:upper:]' '[:lower:]')
check "installs" install_and_move
lib=$(cd "$prefix" && find . -name libperch.so -printf '%h\n' | sed 's|^\./||')
version=$(PKG_CONFIG_PATH=$prefix/$lib/pkgconfig pkg-config --modversion perch)
check "the files are the public ones" files_are_right "$version" "$lib"
check "nothing remembers where it was" remembers_nothing
check "C11 with pkg-config compiles" with_pkg_config tests/lint/consumer/consumer.c "$scratch/by_pkg_config"
check "C11 with pkg-config runs" "$scratch/by_pkg_config"
check "C11 with CMake compiles" with_cmake
check "C11 with CMake runs" "$scratch/consumer/consumer"
check "the installed header alone as C11" "$cc" "${strict[@]}" -fsyntax-only -x c "$prefix/include/perch/perch.h"
if [ -n "$cxx" ]; then
    check "the installed header alone as C++17" "$cxx" -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ \
        -include "$prefix/include/perch/perch.h" /dev/null
else
    skip "the installed header alone as C++17" "no C++ compiler"
fi
for example in tools/examples/*.c; do
    check "$example compiles" with_pkg_config "$example" "$scratch/example"
done
if [ -e "$prefix/bin/perch" ]; then
    check "the command runs" "$prefix/bin/perch" --help
fi

echo "install_test: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
