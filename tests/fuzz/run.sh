#!/usr/bin/env bash
# Runs one fuzz target over its seeds (tests/fuzz/corpus/NAME) and a fixed number of mutations of them.
# usage: run.sh PROGRAM NAME libfuzzer|driver SCRATCH   from the source folder
#
# PERCH_FUZZ_RUNS sets the number, PERCH_FUZZ_SEED what they are drawn from. An input that fails is left in SCRATCH, and
# is to be given to the program as its only argument.
set -euo pipefail
program=$1
name=$2
engine=$3
scratch=$4
corpus=tests/fuzz/corpus/$name
dictionary=tests/fuzz/dict/$name.dict

if [ -z "$(ls "$corpus" 2>/dev/null)" ]; then
    echo "$corpus: no seeds" >&2
    exit 1
fi
rm -rf "$scratch"
mkdir -p "$scratch/found"
flags=(-seed="${PERCH_FUZZ_SEED:-1}" -max_len=16384 -artifact_prefix="$scratch/")
if [ "$engine" = libfuzzer ]; then
    flags+=(-runs="${PERCH_FUZZ_RUNS:-100000}" -max_total_time=120 -timeout=20 -rss_limit_mb=2048 -verbosity=1)
    flags+=(-print_final_stats=1 -detect_leaks=1 "-dict=$dictionary")
    # What it finds of interest is written to the first folder.
    "$program" "${flags[@]}" "$scratch/found" "$corpus" 2>&1 | tail -n 60
else
    "$program" -runs="${PERCH_FUZZ_RUNS:-5000}" "${flags[@]}" "$corpus"
fi
