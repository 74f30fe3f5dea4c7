#!/usr/bin/env bash
# Checks that modules include only what the design allows (docs/adr/0001-base-folder.md tells of base/):
#
#   include        the C library
#   base           include
#   kernels        include base
#   cache          include base
#   comm           include base
#   engine/model   include base kernels comm
#   engine/text    include base
#   engine/store   include base
#   engine/tiers   include base
#   engine         include base kernels cache comm, its own folders
#   tools          include (perch/perch.h alone)
#   tests          anything, and so may NAME_test.c and NAME_testing.[ch], NAME_testing_body.h (what several tests share)
#                  wherever they stand
#
# A module includes its own files. CUDA's headers belong to kernels/ and comm/, and to the .cu files of
# tools/, which measure a GPU without perch; those of MPI and NCCL to comm/.
# usage: includes.sh [ROOT]: prints "FILE:LINE: reason" for each include that is not allowed; exit code 1 if there is one.
set -euo pipefail
root=${1:-$(dirname "$0")/../..}
cd "$root"

list_files() {
    find . \( -path ./build -o -name '.*' -not -name . \) -prune -o -type f \
        \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc' -o -name '*.cpp' -o -name '*.hh' -o -name '*.inc' \) \
        -print | sed 's|^\./||' | sort
}

# awk sees the list of files first, to know what an include names, and then each of them.
list_files | awk '
function module(path) {
    if (path ~ /^engine\/(model|store|text|tiers)\//) {
        match(path, /^engine\/[a-z]+/)
        return substr(path, 1, RLENGTH)
    }
    return path ~ /\// ? substr(path, 1, index(path, "/") - 1) : "."
}

function is_test(path) { return path ~ /^tests\// || path ~ /(^|[_\/])(test|testing|testing_body)\.[a-z]+$/ }

function report(reason) { printf "%s:%d: %s\n", file, line, reason; found++ }

# The file of ours that an include of `name` in `file` opens, or "".
function resolve(name, quoted,    folder) {
    folder = file
    if (!sub(/\/[^\/]*$/, "", folder)) { folder = "." }
    if (quoted && (folder "/" name) in known) { return folder "/" name }
    if (quoted && folder == "." && name in known) { return name }
    if (name in known) { return name }
    if (("include/" name) in known) { return "include/" name }
    return ""
}

function check(name, quoted,    from, to, target) {
    from = module(file)
    if (is_test(file)) { return }
    if (name ~ /(^|\/)\.\.?(\/|$)/) { report("\"" name "\": paths are written from the root, without dots"); return }
    target = resolve(name, quoted)
    if (target == "") {
        if (quoted) { report("\"" name "\" is not a file of this project") }
        else if (from == "include" && !(name in c_library)) { report("<" name "> is not of the C library") }
        else if (name ~ /^(cuda|cublas|cooperative_groups|cuda_.*|mma\.h)/ && from != "kernels" && from != "comm" &&
                 file !~ /^tools\/.*\.cu$/) {
            report("<" name ">: CUDA belongs to kernels/ and comm/")
        } else if (name ~ /^(mpi|nccl)/ && from != "comm") { report("<" name ">: belongs to comm/") }
        return
    }
    to = module(target)
    if (is_test(target)) { report(from "/ may not include tests: " target); return }
    if (!(from in allowed)) { report(from "/ is no module of the design"); return }
    if (to != from && index(" " allowed[from] " ", " " to " ") == 0) {
        report(from "/ may not include " to "/: " target)
    }
}

# Follows comments through a line, so that in_comment says whether the next one begins within one.
function skip(text,    at, what) {
    while (text != "") {
        if (in_comment) {
            at = index(text, "*/")
            if (!at) { return }
            text = substr(text, at + 2)
            in_comment = 0
        } else {
            if (!match(text, /"([^"\\]|\\.)*"|'"'([^'\\\\]|\\\\.)*'"'|\/\/|\/\*/)) { return }
            what = substr(text, RSTART, 2)
            text = substr(text, RSTART + RLENGTH)
            if (what == "//") { return }
            in_comment = what == "/*"
        }
    }
}

BEGIN {
    allowed["include"] = ""
    allowed["base"] = "include"
    allowed["kernels"] = allowed["cache"] = allowed["comm"] = "include base"
    allowed["engine/model"] = "include base kernels comm"
    allowed["engine/store"] = allowed["engine/text"] = allowed["engine/tiers"] = "include base"
    allowed["engine"] = "include base kernels cache comm engine/model engine/store engine/text engine/tiers"
    allowed["tools"] = "include"
    n = split("assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg " \
              "stdatomic stdbool stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype", names)
    for (i = 1; i <= n; i++) { c_library[names[i] ".h"] = 1 }
}

{ known[$0] = 1; files[++n_files] = $0 }

END {
    for (f = 1; f <= n_files; f++) {
        file = files[f]
        line = in_comment = 0
        while ((getline text < file) > 0) {
            line++
            if (in_comment || text !~ /^[ \t]*(#|%:)[ \t]*include/) { skip(text); continue }
            sub(/^[ \t]*(#|%:)[ \t]*include(_next)?[ \t]*/, "", text)
            if (match(text, /^("[^"]*"|<[^>]*>)/)) {
                name = substr(text, 2, RLENGTH - 2)
                rest = substr(text, RLENGTH + 1)
                check(name, text ~ /^"/)
                skip(rest)
            } else if (!is_test(file)) {
                report("an include that is not a plain name cannot be checked")
            }
        }
        close(file)
    }
    if (n_files == 0) { print "no source files: wrong folder?"; exit 1 }
    exit found > 0
}'
