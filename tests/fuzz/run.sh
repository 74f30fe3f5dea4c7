#!/usr/bin/env bash
# Runs one fuzz target over its seeds (tests/fuzz/corpus/NAME) and a fixed number of mutations of them.
# usage: run.sh PROGRAM NAME libfuzzer|driver RUNS SCRATCH   from the source folder
#
# PERCH_FUZZ_RUNS overrides the number, PERCH_FUZZ_SEED says what they are drawn from. An input that fails is left in
# SCRATCH, and is to be given to the program as its only argument.
set -euo pipefail
program=$1
name=$2
engine=$3
runs=${PERCH_FUZZ_RUNS:-$4}
scratch=$5
corpus=tests/fuzz/corpus/$name
dictionary=tests/fuzz/dict/$name.dict

if [ -z "$(ls "$corpus" 2>/dev/null)" ]; then
    echo "$corpus: no seeds" >&2
    exit 1
fi
rm -rf "$scratch"
mkdir -p "$scratch/found"
flags=(-runs="$runs" -seed="${PERCH_FUZZ_SEED:-1}" -max_len=16384 -artifact_prefix="$scratch/")
if [ "$engine" = libfuzzer ]; then
    flags+=(-max_total_time=120 -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -detect_leaks=1 -dict="$dictionary")
    # What it finds of interest is written to the first folder.
    "$program" "${flags[@]}" "$scratch/found" "$corpus" 2>&1 | tail -n 60
else
    "$program" "${flags[@]}" "$corpus"
fi
