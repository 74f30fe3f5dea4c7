# Reads `ctest --verbose`: shows each test as it ends, and appends what it counted to the file `results`: stage, test,
# passed, failed, skipped. Reasons for skipping go to the file `skips`.
#
# A test program counts by its lines "NAME: N passed, N failed, N skipped"; one without such a line counts as one test, by
# its exit code. A program that crashes, runs out of time or ends with an error without having counted a failure counts one.
BEGIN { OFS = "\t" }

# A line of a running test: "ID: text".
match($0, /^[0-9]+: /) {
    id = substr($0, 1, RLENGTH - 2)
    text = substr($0, RLENGTH + 1)
    if (text ~ /^[^ ]+: [0-9]+ passed, [0-9]+ failed(, [0-9]+ skipped)?$/) {
        n = split(text, words, " ")
        counted[id] = 1
        passed[id] += words[2]
        failed[id] += words[4]
        skipped[id] += n > 5 ? words[6] : 0
    }
    if (text ~ /^skip /) { print substr(text, 6) >> skips }
    if (text ~ /^FAIL / && n_bad[id] < 40) { bad[id, n_bad[id]++] = text }
    kept[id, n_lines[id]++ % 80] = text
    next
}

# The line at its end: " 1/12 Test  #3: NAME ....   Passed    0.50 sec".
match($0, /^ *[0-9]+\/[0-9]+ Test +#[0-9]+: /) {
    rest = substr($0, RLENGTH + 1)
    id = substr($0, 1, RLENGTH - 2)
    sub(/.*#/, "", id)
    name = rest
    sub(/ .*/, "", name)
    time = rest
    sub(/ +sec.*/, "", time)
    sub(/.* /, "", time)
    state = rest ~ /\*\*\*Skipped/ ? "skip" : rest ~ / Passed / ? "ok" : "FAIL"
    if (state == "FAIL" && !failed[id]) { failed[id]++ }
    if (state == "skip" && !skipped[id]) { skipped[id]++ }
    if (state == "ok" && failed[id]) { state = "FAIL" }
    if (state == "ok" && !counted[id]) { passed[id]++ }
    if (state == "FAIL") {
        from = n_lines[id] > 80 ? n_lines[id] - 80 : 0
        for (i = 0; from > 0 && i < n_bad[id]; i++) { print "        " bad[id, i] }
        for (i = from; i < n_lines[id]; i++) { print "        " kept[id, i % 80] }
        sub(/^[^ ]+ \.*/, "", rest)
        print "        " rest
    }
    printf "  %-5s %-32s %6d passed %4d failed %4d skipped %8.1f s\n", state, name, passed[id], failed[id], skipped[id], time
    print stage, name, passed[id] + 0, failed[id] + 0, skipped[id] + 0 >> results
    fflush()
    next
}

# What ctest itself has to say: no tests, a broken configuration.
/^(CMake Error|No tests were found|.*Could not find|Unable to)/ { print "  " $0 }
