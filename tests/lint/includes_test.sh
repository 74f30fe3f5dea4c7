#!/usr/bin/env bash
# Plants includes, allowed and not, in a tree of their own, and checks that includes.sh finds exactly those that are not.
# usage: includes_test.sh
set -euo pipefail
checker=$(cd "$(dirname "$0")" && pwd)/includes.sh
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
passed=0
failed=0

# put FILE LINE...: writes a file of the planted tree.
put() {
    mkdir -p "$tree/$(dirname "$1")"
    printf '%s\n' "${@:2}" >"$tree/$1"
}

# expect NAME [LINE...]: the checker says exactly these lines, and its exit code agrees.
expect() {
    local name=$1 want said code=0
    want=$(printf '%s\n' "${@:2}")
    said=$("$checker" "$tree" 2>&1) || code=$?
    if [ "$said" = "$want" ] && [ "$code" -eq "$((${#@} > 1))" ]; then
        passed=$((passed + 1))
        echo "ok   includes_test/$name"
    else
        failed=$((failed + 1))
        printf 'FAIL includes_test/%s: exit code %s\n--- expected\n%s\n--- said\n%s\n' "$name" "$code" "$want" "$said"
    fi
}

allowed_tree() {
    rm -rf "${tree:?}"/*
    put include/perch/perch.h '#include <stddef.h>' '#include <stdint.h>'
    put base/base.h '#include "perch/perch.h"' '#include <stdio.h>'
    put kernels/kernels.h '#include "base/base.h"'
    put kernels/cpu/cpu.c '#include "kernels/kernels.h"' '#include "local.h"' '#include <immintrin.h>'
    put kernels/cpu/local.h '#pragma once'
    put kernels/cuda/gemm.cu '#include <cuda_runtime.h>'
    put cache/cache.h '#include "base/base.h"'
    put comm/comm.h '#include "base/base.h"' '#include <mpi.h>'
    put engine/model/model.h '#include "kernels/kernels.h"' '#include "comm/comm.h"'
    put engine/text/text.h '#include <perch/perch.h>' '#include "base/base.h"'
    put engine/tiers/tiers.h '#include "base/base.h"'
    put engine/engine.c '#include "cache/cache.h"' '#include "engine/model/model.h"' '#include "engine/text/text.h"' \
        '#include "engine/tiers/tiers.h"'
    put tools/perch.c '#include "perch/perch.h"' '#include <jansson.h>'
    put tools/limits.cu '#include <cuda_runtime.h>'
    put tests/whole_test.c '#include "engine/model/model.h"' '#include "cache/cache.h"' '#include "../cache/cache.h"'
    put cache/cache_test.c '#include "tests/support/check.h"' '#include "kernels/kernels.h"'
    put cache/cache_testing.h '#include "tests/support/check.h"'
    put cache/cache_testing_body.h '#include "tests/support/check.h"'
    put engine/model/testing.c '#include "tests/support/check.h"' '#include "cache/cache.h"'
    put build/generated.c '#include "nowhere.h"'
}

allowed_tree
expect "what the design allows passes"

put cache/cache.c '' '#include "kernels/kernels.h"'
expect "cache does not include kernels" 'cache/cache.c:2: cache/ may not include kernels/: kernels/kernels.h'

allowed_tree
put cache/cache.c '#include <cuda_runtime.h>'
expect "cache includes no CUDA header" 'cache/cache.c:1: <cuda_runtime.h>: CUDA belongs to kernels/ and comm/'

allowed_tree
put tools/perch.c '#include <cuda_runtime.h>'
put tools/limits.cu '#include <cublasLt.h>' '#include "kernels/kernels.h"'
expect "tools include CUDA in .cu files alone, and no kernels there" \
    'tools/limits.cu:2: tools/ may not include kernels/: kernels/kernels.h' \
    'tools/perch.c:1: <cuda_runtime.h>: CUDA belongs to kernels/ and comm/'

allowed_tree
put engine/text/bpe.c '#include "engine/model/model.h"' '#include "kernels/kernels.h"'
expect "text includes neither model nor kernels" \
    'engine/text/bpe.c:1: engine/text/ may not include engine/model/: engine/model/model.h' \
    'engine/text/bpe.c:2: engine/text/ may not include kernels/: kernels/kernels.h'

allowed_tree
put engine/tiers/disk.c '#include "kernels/kernels.h"' '#include "cache/cache.h"'
expect "tiers include neither kernels nor the cache" \
    'engine/tiers/disk.c:1: engine/tiers/ may not include kernels/: kernels/kernels.h' \
    'engine/tiers/disk.c:2: engine/tiers/ may not include cache/: cache/cache.h'

allowed_tree
put engine/engine.h '#include "base/base.h"'
put engine/model/forward.c '#include "engine/engine.h"' '#include "cache/cache.h"'
expect "model includes neither the engine nor the cache" \
    'engine/model/forward.c:1: engine/model/ may not include engine/: engine/engine.h' \
    'engine/model/forward.c:2: engine/model/ may not include cache/: cache/cache.h'

allowed_tree
put tools/chat.c '#include "base/base.h"' '#include <cache/cache.h>'
expect "tools use the public header alone, in quotes or not" \
    'tools/chat.c:1: tools/ may not include base/: base/base.h' \
    'tools/chat.c:2: tools/ may not include cache/: cache/cache.h'

allowed_tree
put base/base.c '#include "kernels/kernels.h"'
put kernels/cpu/attention.c '#include "cache/cache.h"' '#include <nccl.h>'
expect "base and kernels stay below" \
    'base/base.c:1: base/ may not include kernels/: kernels/kernels.h' \
    'kernels/cpu/attention.c:1: kernels/ may not include cache/: cache/cache.h' \
    'kernels/cpu/attention.c:2: <nccl.h>: belongs to comm/'

allowed_tree
put include/perch/perch.h '#include <unistd.h>' '#include "base/base.h"'
expect "the public header needs the C library alone" \
    'include/perch/perch.h:1: <unistd.h> is not of the C library' \
    'include/perch/perch.h:2: include/ may not include base/: base/base.h'

allowed_tree
put engine/engine.c '#include "tests/support/check.h"' '#include "../cache/cache.h"' '#include HEADER' \
    '#include "cache/cache_testing.h"'
put tests/support/check.h ''
expect "tests, dots and macros are refused" \
    'engine/engine.c:1: engine/ may not include tests: tests/support/check.h' \
    'engine/engine.c:2: "../cache/cache.h": paths are written from the root, without dots' \
    'engine/engine.c:3: an include that is not a plain name cannot be checked' \
    'engine/engine.c:4: engine/ may not include tests: cache/cache_testing.h'

allowed_tree
put misc/odd.c '#include "base/base.h"'
expect "a folder that the design does not know is refused" 'misc/odd.c:1: misc/ is no module of the design'

allowed_tree
put cache/cache.c '/*' '#include "kernels/kernels.h"' '*/ // #include "x"' 'char *glob = "/*";' "char quote = '\"';" \
    '# include "kernels/kernels.h" /* why' '#include "engine/model/model.h"' '*/'
expect "comments and strings do not mislead" 'cache/cache.c:6: cache/ may not include kernels/: kernels/kernels.h'

echo "includes_test: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
