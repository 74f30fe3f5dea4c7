#!/usr/bin/env python3
"""Plants one fault at a time in the CUDA backend and records which check notices it.

    tests/emulation/mutate.py [--all] [--build DIR] [--into FILE] [WORD...]    the table, as Markdown
    tests/emulation/mutate.py --check                                          whether each fault can still be planted; a second

Works on a copy of the tree in DIR (build/mutate) and three builds of it: optimised, where results are compared and the emulation
watches what is launched, with gcc's AddressSanitizer and UndefinedBehaviorSanitizer, with clang's ThreadSanitizer. A fault
that one of them has noticed is not tried in the next ones, unless --all. FILE gets each row as soon as it is known, and a fault
that was noticed there already is not tried again: what was interrupted goes on. WORD: only faults whose description or file has
one of them. Exit code 1: a fault that nothing noticed; 2: one that can't be planted, or a test that fails without any.
"""
import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

from mutations import MUTATIONS

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
SANITIZED = ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_FLAGS_DEBUG=-g1 -O1", "-DCMAKE_CXX_FLAGS_DEBUG=-g1 -O1",
             "-DPERCH_SANITIZE_EMULATION=ON"]
# Name, how it is configured, PERCH_TEST_SCALE. The cheapest first.
BUILDS = [
    ("values", ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG"], "0.2"),
    ("asan", SANITIZED + ["-DPERCH_SANITIZE=address,undefined"], "0.05"),
    ("tsan", SANITIZED + ["-DPERCH_SANITIZE=thread", "-DCMAKE_C_COMPILER=clang"], "0.05"),
]
# What a test says of a fault, the most telling first.
SIGNS = [
    (r"ThreadSanitizer: ([a-z]+(?:[ -][a-z]+)*)", "{}"),
    (r"AddressSanitizer: ([a-z-]+)", "{}"),
    (r"LeakSanitizer", "leak"),
    (r"runtime error: index \S+ (out of bounds)", "{}"),
    (r"runtime error: ([a-z]+ [a-z]+)", "{}"),
    (r"(deadlock|divergent barrier|mismatched warp collective|bank conflict)", "{}"),
    (r"touches |CUDA_ERROR_ILLEGAL_ADDRESS|illegal memory access", "out of bounds"),
    (r"left over: ", "something left over"),
    (r"^FAIL ", "wrong results"),
]
# Seconds for a test that the fault slows down or stops.
PATIENCE = 120


def run(command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          check=False, **options)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def copy_tree(to):
    """The tracked and the untracked files; those that are the same stay as they are, so that little is built anew."""
    listed = run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT).stdout.split("\n")
    wanted = {name for name in listed if name and os.path.isfile(os.path.join(ROOT, name))}
    for name in wanted:
        here, there = os.path.join(ROOT, name), os.path.join(to, name)
        with open(here, "rb") as file:
            data = file.read()
        if os.path.isfile(there):
            with open(there, "rb") as file:
                if file.read() == data:
                    continue
        os.makedirs(os.path.dirname(there), exist_ok=True)
        shutil.copy(here, there)
    for folder, _, names in os.walk(to):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.relpath(path, to) not in wanted:
                os.remove(path)


def planted(text, mutation):
    """The file's text with the fault; None where the place for it is not there once."""
    _, _, old, new, _ = mutation
    return text.replace(old, new) if text.count(old) == 1 and old != new else None


def misfits(chosen, root):
    wrong = [m for m in chosen if planted(read(os.path.join(root, "kernels", "cuda", m[1])), m) is None]
    for what, file, _, _, _ in wrong:
        print("%s: the fault '%s' can't be planted any more: its text is not there once" % (file, what), file=sys.stderr)
    names = [m[0] for m in chosen]
    for what in {name for name in names if names.count(name) > 1}:
        print("two faults are called '%s'" % what, file=sys.stderr)
    return len(wrong) + len(names) - len(set(names))


def tell(output, code):
    for pattern, what in SIGNS:
        found = re.search(pattern, output, re.MULTILINE)
        if found:
            return what.format(*found.groups()).strip()
    return "crash" if code < 0 else "exit code %d" % code


class Build:
    """One build of the copy. Each test is run once without a fault before it is asked about one."""

    def __init__(self, base, source, name, flags, scale):
        self.name, self.source, self.flags = name, source, flags
        self.folder = os.path.join(base, name)
        self.environment = dict(os.environ, PERCH_TEST_SCALE=scale, TSAN_OPTIONS="halt_on_error=1:atexit_sleep_ms=0",
                                UBSAN_OPTIONS="halt_on_error=1", ASAN_OPTIONS="allocator_may_return_null=1")
        self.patience = {}

    def compile(self, tests):
        done = run(["ninja", "-C", self.folder, *tests])
        return None if done.returncode == 0 else done.stdout

    def trust(self, tests):
        """What is wrong without a fault, or None."""
        fresh = [test for test in tests if test not in self.patience]
        if not fresh:
            return None
        if not self.patience:
            done = run(["cmake", "-G", "Ninja", "-S", self.source, "-B", self.folder, "-DPERCH_CUDA=OFF",
                        "-DCMAKE_C_FLAGS=-w", "-DCMAKE_CXX_FLAGS=-w", *self.flags]) # faults leave things unused
            if done.returncode != 0:
                return done.stdout
        errors = self.compile(fresh)
        for test in fresh if errors is None else []:
            began = time.monotonic()
            seen = self.ask(test)
            if seen:
                return "%s without a fault, %s: %s" % (test, self.name, seen)
            self.patience[test] = PATIENCE + 5 * (time.monotonic() - began)
        return errors

    def ask(self, test):
        """How the test takes what is planted, or None. What comes after the first case that fails is not waited for."""
        # Sanitizers reserve fixed ranges of addresses, which randomised ones may run into.
        command = ["setarch", os.uname().machine, "-R", os.path.join(self.folder, "tests", test)]
        output = []
        with subprocess.Popen(command, cwd=self.source, env=self.environment, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace") as process:
            watch = threading.Timer(self.patience.get(test, 1800), process.kill)
            began = time.monotonic()
            watch.start()
            for line in process.stdout:
                output.append(line)
                if line.startswith("FAIL "):
                    watch.cancel()
                    process.kill()
                    return tell("".join(output), 1)
            code = process.wait()
            watch.cancel()
            if code == -signal.SIGKILL and time.monotonic() - began >= watch.interval:
                return "no end"
        return tell("".join(output), code) if code else None


def noticed_in(path):
    """The faults that a table's rows say were noticed."""
    rows = [[cell.strip() for cell in line.split("|")] for line in read(path).split("\n")] if os.path.exists(path) else []
    return {row[1] for row in rows if any(": " in cell for cell in row[3:])}


def try_fault(mutation, source, builds, stop_at_first):
    """What each build's tests say: {build: (test, sign) or None}, and what went wrong with the trial itself."""
    path = os.path.join(source, "kernels", "cuda", mutation[1])
    sound, seen = read(path), {}
    for build in builds:
        trouble = build.trust(mutation[4])
        if trouble:
            return seen, trouble
        write(path, planted(sound, mutation))
        trouble = build.compile(mutation[4])
        signs = ((test, build.ask(test)) for test in mutation[4]) if not trouble else ()
        seen[build.name] = next((sign for sign in signs if sign[1]), None)
        write(path, sound)
        if trouble or (stop_at_first and seen[build.name]):
            return seen, trouble
    return seen, None


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--build", metavar="DIR", default=os.path.join(ROOT, "build", "mutate"))
    arguments.add_argument("--into", metavar="FILE")
    arguments.add_argument("--all", action="store_true")
    arguments.add_argument("--check", action="store_true")
    arguments.add_argument("words", nargs="*", metavar="WORD")
    options = arguments.parse_args()
    chosen = [m for m in MUTATIONS if not options.words or any(w in m[0] or w in m[1] for w in options.words)]
    if misfits(chosen, ROOT):
        return 2
    if options.check:
        print("%d faults can be planted" % len(chosen))
        return 0

    base = os.path.abspath(options.build)
    source = os.path.join(base, "source")
    copy_tree(source)
    builds = [Build(base, source, *build) for build in BUILDS]
    known = noticed_in(options.into) if options.into else set()
    n_noticed, n_failed = sum(mutation[0] in known for mutation in chosen), 0
    table = open(options.into, "a", encoding="utf-8") if options.into else sys.stdout
    if not known:
        names = " | ".join(build.name for build in builds)
        print("| fault | file | %s |\n|---|---|%s" % (names, "---|" * len(builds)), file=table)
    for mutation in chosen:
        if mutation[0] in known:
            continue
        began = time.monotonic()
        seen, trouble = try_fault(mutation, source, builds, not options.all)
        if trouble:
            print("%s: %s" % (mutation[0], trouble[-3000:]), file=sys.stderr, flush=True)
            n_failed += 1
            continue
        n_noticed += any(seen.values())
        cells = ["" if build.name not in seen else "%s: %s" % seen[build.name] if seen[build.name] else "–"
                 for build in builds]
        print("| %s | `%s` | %s |" % (mutation[0], mutation[1], " | ".join(cells)), file=table, flush=True)
        print("%4.0f s  %s%s" % (time.monotonic() - began, mutation[0], "" if any(seen.values()) else ": NOT NOTICED"),
              file=sys.stderr, flush=True)
    print("\n%d faults, %d noticed" % (len(chosen), n_noticed), file=table, flush=True)
    return 2 if n_failed else 1 if n_noticed < len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
