#!/usr/bin/env bash
# tools/gpu-check without a GPU: what it runs is stood in for by small scripts, and perch runs on the CPU. So what it counts,
# what it says, how it keeps to its time and what it leaves behind are tested here; what a GPU does is not.
. "$(dirname "$0")/lib.sh"

pack=$tmp/pack
fakes=$tmp/fakes
state=$tmp/state # what the fakes are to do
mkdir -p "$pack"/{bin,lib,tests,deps} "$fakes" "$state"

# fake FILE: a script, from stdin. It finds $state and the real $perch.
fake() {
    { printf '#!/usr/bin/env bash\nstate=%q\nperch=%q\n' "$state" "$perch" && cat; } >"$1"
    chmod +x "$1"
}

# set_up: a GPU of another machine, a build for it, and tools that find nothing wrong.
set_up() {
    rm -f "$state"/* "$pack"/tests/* "$pack"/bin/*
    cp "$(ldd "$perch" | awk '/libperch\.so/ { print $3 }')" "$pack/lib/libperch_cuda.so.0"
    cp "$helpers/cli_json" "$pack/tests/cli_json"
    fake "$fakes/nvidia-smi" <<'FAKE'
case "$*" in
-L) [ -e "$state/no-gpu" ] && { echo "No devices were found"; exit 6; }; echo "GPU 0: Fake GPU (UUID: 0)" ;;
*memory.used*nounits*)
    if [ -e "$state/running" ]; then
        touch "$state/seen"
        cat "$state/used" 2>/dev/null || echo 700
    else
        echo 500
    fi
    ;;
*compute_cap,noheader* | *query-gpu=compute_cap*) echo 9.0 ;;
*noheader*) echo "Fake GPU, 580.0, 143771 MiB" ;;
*) echo "the whole page" ;;
esac
FAKE
    fake "$fakes/cuobjdump" <<<'[ "$1" = --list-elf ] && cat "$state/elf" 2>/dev/null || echo "ELF file 1: x.sm_90.cubin"'
    fake "$fakes/compute-sanitizer" <<'FAKE'
echo "$*" >>"$state/sanitized"
[ -e "$state/unsupported" ] && { echo "========= Error: Device not supported"; exit 1; }
[ -e "$state/hazard" ] && [ "$2" = racecheck ] && { echo "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"; exit 33; }
[ "$2" = memcheck ] && echo "========= ERROR SUMMARY: 0 errors" || echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
FAKE
    fake "$fakes/python3" <<'FAKE'
[ -e "$state/no-torch" ] && { echo "ModuleNotFoundError: No module named 'torch'"; exit 1; }
case $1 in
-c) exit 0 ;;
*compare-transformers.py) while [ "$1" != --out ]; do shift; done
    echo '{"cases": [{"what": "generate", "batch": 64, "decode_tokens_per_s": 1234.5, "prefill_tokens_per_s": 99},
        {"what": "continuous", "batch": 256, "failed": "out of time"}]}' >"$2" ;;
esac
FAKE
    fake "$pack/bin/gpu-limits" <<<'echo "{\"copy\": {\"read_gbps\": {\"median\": 30.5}}, \"copy_gbps\": 20.25, \"matrix_tflops\": 0.5}"'
    # On the CPU, which it calls a GPU.
    fake "$pack/bin/perch" <<'FAKE'
[ -e "$state/no-cuda" ] && { echo "perch $1: no CUDA backend: the driver is too old" >&2; exit 2; }
trap 'rm -f "$state/running" "$state/seen"' EXIT
touch "$state/running"
case "$*" in
*bench.vary=*) ;;
*bench-cuda.ini*) # whose memory is watched, however fast this machine is
    for ((i = 0; i < 300; i++)); do
        [ -e "$state/seen" ] && break
        sleep 0.1
    done
    ;;
esac
if [ "$1" = plan ]; then
    "$perch" "${@/engine.device=cuda/engine.device=cpu}" | sed 's/"cpu /"cuda fake /'
    exit "${PIPESTATUS[0]}"
fi
"$perch" "${@/engine.device=cuda/engine.device=cpu}" || exit
while [ $# -gt 1 ] && [ "$1" != --json ]; do
    shift
done
# What a context would take.
[ $# -lt 2 ] || [ -e "$state/no-nvml" ] || sed -i 's/"context_bytes": 0/"context_bytes": 209715200/' "$2"
FAKE
    program good_test_gpu 'echo "good_test: 3 passed, 0 failed, 0 skipped"'
    program eviction_test 'echo "  on cuda fake"
        echo "  60 schedules, 12000 rows of logits; 900 evictions, 1 preemptions"
        echo "eviction_test: 1 passed, 0 failed, 0 skipped"'
    program api_test 'echo "  on cuda fake"; echo "api_test: 20 passed, 0 failed, 0 skipped"'
    program forward_test 'echo "  on cuda fake"; echo "forward_test: 8 passed, 0 failed, 0 skipped"'
    program golden_test 'echo "  cuda fake, bf16, vmm: 36 runs, off by 1.5e-02"
        echo "skip golden_test: one: no reason"; echo "golden_test: 5 passed, 0 failed, 1 skipped"'
}

program() { fake "$pack/tests/$1" <<<"$2"; }

small=(--set engine.device=cpu --set model.path=configs/shapes/tiny --set engine.session_len=160 --set engine.max_batch_size=4
    --set cache.cache_max_entry_count=4 --set bench.prompt_tokens=24 --set bench.completion_tokens=60
    --set bench.concurrency=1,2 --set bench.repeats=2)

# check ARGUMENT...: runs it; its last line in $last, the table's line of a stage by row.
check() {
    rm -rf "$tmp/check"
    run env PATH="$fakes:$PATH" PERCH_SHARED="${known:-/nowhere}" tools/gpu-check --build "$pack" --out "$tmp/check" "$@"
    last=$(tail -n 1 <<<"$out")
}

# row STAGE: its passed, failed and skipped in the table.
row() { awk -v stage="$1" '/^stage +seconds/ { table = 1 } table && $1 == stage { print $3, $4, $5 }' <<<"$out"; }

t "everything that is there passes, is counted once, and is written down"
set_up
check "${small[@]}"
same "the exit code" 0 "$code"
same "environment, build" "1 0 0/3 0 0" "$(row environment)/$(row build)"
same "limits, kernels" "1 0 0/3 0 0" "$(row limits)/$(row kernels)"
same "engine" "38 0 2" "$(row engine)"
same "sanitizer" "3 0 0" "$(row sanitizer)"
same "bench, vary" "3 0 0/1 0 0" "$(row bench)/$(row vary)"
same "compare" "1 0 1" "$(row compare)"
same "the last line" "54 passed, 0 failed, 3 skipped" "$last"
same "the files" "bench.json bench.txt compare.json environment.txt sanitizer.txt summary.txt tests.txt" \
    "$(cd "$tmp/check" && printf '%s\n' * | xargs)"
same "the limits in bench.json" "20.25	0.5" "$(json limits.copy_gbps limits.matrix_tflops <"$tmp/check/bench.json")"
same "its benchmarks" "2	2	8" "$(json decode.runs.# prefill.runs.# vary.runs.# <"$tmp/check/bench.json")"
same "limits that the benchmarks were given" "20.25	0.5" \
    "$(json decode.config.bench.copy_gbps vary.config.bench.matrix_tflops <"$tmp/check/bench.json")"
same "variants" "cache.mapping=table	engine.graphs=off	engine.deterministic=off" \
    "$(json vary.variants.1.name vary.variants.2.name vary.variants.3.name <"$tmp/check/bench.json")"
has "the figures" "generate 64: 1234" "$out"
has "the figures" "schedules, 12000 rows of logits; 900 evictions" "$out"
has "the comparison" "engine.graphs=off" "$(cat "$tmp/check/summary.txt")"
same "the summary's last line" "$last" "$(tail -n 1 "$tmp/check/summary.txt")"
has "what the tests said" "===== good_test_gpu" "$(cat "$tmp/check/tests.txt")"

t "a known text, and conversations that are evicted"
if [ ! -d "$shared/stories260K" ]; then
    skip "no shared data"
else
    known=$(dirname "$shared") check --only engine
    same "engine" "41 0 1" "$(row engine)"
    known=$tmp/known
    mkdir -p "$known/data/stories260K"
    cp "$shared"/stories260K/* "$known/data/stories260K/"
    sed -i 's/"generated_ids": *\[[0-9]*/"generated_ids": [7/' "$known/data/stories260K/expected.json"
    check --only engine
    same "engine, where the text is another" "40 1 1" "$(row engine)"
    same "the exit code" 1 "$code"
    known=
fi

t "without a GPU it says so and does nothing else"
touch "$state/no-gpu"
check
same "the exit code" 1 "$code"
has "the reason" "no GPU: nvidia-smi finds none (No devices were found)" "$out"
same "the last line" "0 passed, 1 failed" "$last"

t "a backend that can't be opened ends it with perch's own reason"
set_up
touch "$state/no-cuda"
check --only kernels
same "the last line" "3 passed, 1 failed" "$last"
has "the reason" "the driver is too old" "$out"

t "a build that is packed in one file"
set_up
tar -C "$tmp" -czf "$tmp/moved.tgz" pack
check --build "$tmp/moved.tgz" --only kernels
same "environment, build" "1 0 0/3 0 0" "$(row environment)/$(row build)"
same "the last line" "7 passed, 0 failed" "$last"
check --build "$tmp/moved" --only kernels
same "the last line, without .tgz" "7 passed, 0 failed" "$last"
head -c 2000 "$tmp/moved.tgz" >"$tmp/torn.tgz"
check --build "$tmp/torn.tgz" --only kernels
same "the last line, of half a file" "1 passed, 1 failed" "$last"
has "the reason" "torn.tgz" "$out"

t "a build that is not there, or lacks a library, is named"
set_up
rm "$pack/bin/gpu-limits"
check
has "the reason" "bin/gpu-limits is not there; tools/gpu-build makes it" "$out"
same "the last line" "1 passed, 1 failed" "$last"

t "code for the GPU: machine code of its kind, else PTX, else none"
set_up
echo "ELF file 1: x.sm_80.cubin" >"$state/elf"
check --only limits
has "other machine code with PTX" "no machine code for sm_90 (sm_80), but PTX" "$out"
fake "$fakes/cuobjdump" <<<'[ "$1" = --list-elf ] && echo "ELF file 1: x.sm_80.cubin"'
check --only limits
has "without" "no code for sm_90: sm_80" "$out"
same "the exit code" 1 "$code"

t "tests that fail, die or hang are failures with their reason"
set_up
program bad_test_gpu 'echo "FAIL: 1 is not 2"; echo "bad_test: 2 passed, 1 failed, 0 skipped"; exit 1'
program dead_test_gpu 'kill -SEGV $$'
check --only kernels
same "kernels" "5 2 0" "$(row kernels)"
has "why it died" "dead_test_gpu: exit code 139" "$out"
has "what failed" "1 is not 2" "$out"
same "the exit code" 1 "$code"
program bad_test_gpu 'sleep 100'
rm "$pack/tests/dead_test_gpu"
check --only kernels --minutes 0.4
has "why it hung" "bad_test_gpu: it did not end in its time" "$out"
program eviction_test 'echo "eviction_test: 1 passed, 0 failed, 0 skipped"'
check --only engine
has "a test on the CPU" "the schedules did not run on the GPU" "$out"
program forward_test 'echo "forward_test: 8 passed, 0 failed, 0 skipped"'
program api_test 'echo "  on cpu"; echo "api_test: 20 passed, 0 failed, 0 skipped"'
check --only engine
has "passes on the CPU" "the model's passes did not run on the GPU" "$out"
has "an API on the CPU" "the API's last engine did not run on the GPU" "$out"

t "compute-sanitizer: what it finds fails, where it does not work it is skipped, every program is looked at twice"
set_up
touch "$state/hazard"
check --only sanitizer
same "sanitizer" "2 1 0" "$(row sanitizer)"
has "what it found" "racecheck of good_test_gpu: ========= RACECHECK SUMMARY: 1 hazard" "$out"
same "what was looked at" 3 "$(grep -c -e --tool "$state/sanitized")"
rm "$state/hazard"
touch "$state/unsupported"
check --only sanitizer
same "sanitizer" "0 0 3" "$(row sanitizer)"
same "the exit code" 0 "$code"

t "a memory plan that does not hold, and transformers that are not there"
set_up
echo 9000 >"$state/used"
touch "$state/no-torch"
check "${small[@]}" --only bench --only compare
same "bench, limits, compare" "2 1 0/1 0 0/0 0 1" "$(row bench)/$(row limits)/$(row compare)"
has "the plan" "but 8500 MiB were in use" "$out"
has "transformers" "No module named 'torch'" "$out"

t "a memory plan that holds to the byte, or of which a part is not known"
set_up
echo 740 >"$state/used" # 240 MiB: the context's 200 and the plan's are more
check "${small[@]}" --only bench
has "the plan" "MiB with the driver's 200; 240 MiB were in use at most" "$out"
echo 900 >"$state/used"
check "${small[@]}" --only bench
has "what lies beyond it" "but 400 MiB were in use" "$out"
touch "$state/no-nvml"
check "${small[@]}" --only bench
has "without NVML" "what the driver's context takes is not known" "$out"

t "stages for which there is no time are skipped, and said to be"
set_up
program good_test_gpu 'sleep 3; echo "good_test: 3 passed, 0 failed, 0 skipped"'
check --minutes 1 --only kernels --only vary
same "kernels, vary" "3 0 0/0 0 1" "$(row kernels)/$(row vary)"
has "the reason" "vary: it needs 60 s" "$out"
same "the exit code" 0 "$code"

t "wrong arguments are refused"
for arguments in "--only speed" "--minutes 0" "--minutes" "--set nothing" "--fast 1"; do
    # shellcheck disable=SC2086
    run tools/gpu-check $arguments
    same "the exit code of $arguments" 2 "$code"
    same "the lines about $arguments" 1 "$(wc -l <"$tmp/err")"
done

finish
