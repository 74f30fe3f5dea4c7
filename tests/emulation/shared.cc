/*
 * Shared memory: what a block's threads have in common, from NaNs on (what nobody wrote shows), and asynchronous copies into it.
 */
#include "tests/emulation/block.hh"
#include "tests/emulation/engine.hh"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

namespace simt {
namespace {

Shared &shared(const void *key, size_t bytes, size_t align) {
    Block &b = *block;
    for (Shared &s : b.shared) {
        if (s.key == key && s.bytes == bytes) {
            if (s.used) {
                return s;
            }
            s.used = true;
            b.shared_bytes += key ? bytes : 0;
            memset(s.at, 0xff, bytes);
            return s;
        }
    }
    Shared s = {key, bytes, nullptr, nullptr, 0, true};
    const size_t padded = (bytes + align - 1) / align * align;
    if (EMU_TSAN_ON) {
        s.pages = s.at = static_cast<char *>(aligned_alloc(128, (bytes + 127) / 128 * 128));
    } else {
        const size_t pages = (padded + kPage - 1) / kPage * kPage;
        s.mapped = pages + 2 * kPage;
        void *p = mmap(nullptr, s.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(static_cast<char *>(p) + kPage, pages, PROT_READ | PROT_WRITE) != 0) {
            fail("no memory for shared memory");
        }
        s.pages = static_cast<char *>(p);
        s.at = s.pages + kPage + pages - padded;
        EMU_ASAN(__asan_poison_memory_region(s.pages, s.mapped); __asan_unpoison_memory_region(s.at, bytes);)
    }
    memset(s.at, 0xff, bytes); /* NaN: what nobody wrote shows */
    b.shared_bytes += key ? bytes : 0;
    b.shared.push_back(s);
    return b.shared.back();
}

} // namespace

void Shared::drop() {
    EMU_ASAN(__asan_unpoison_memory_region(pages, mapped);)
    if (mapped) {
        munmap(pages, mapped);
    } else {
        free(pages);
    }
}

void *shared_variable(const void *key, size_t bytes) {
    Quiet quiet;
    void *at = shared(key, bytes, 16).at;
    if (block->shared_bytes - block->dynamic_bytes > 48 * 1024 || block->shared_bytes > 227 * 1024) {
        fail("%zu bytes of shared memory, %zu of them dynamic: more than a block can have", block->shared_bytes,
             block->dynamic_bytes);
    }
    return at;
}

void *dynamic_shared() {
    Quiet quiet;
    return shared(nullptr, block->dynamic_bytes, 128).at;
}

bool is_shared(const void *p, size_t bytes) {
    const char *at = static_cast<const char *>(p);
    for (const Shared &s : block->shared) {
        if (s.used && at >= s.at && at + bytes <= s.at + s.bytes) {
            return true;
        }
    }
    return false;
}

void count_ldmatrix(unsigned matrices, unsigned conflicts) {
    block->stats.ldmatrix += matrices;
    block->stats.ldmatrix_conflicts += conflicts;
}

void copy_async(void *to, const void *from, size_t bytes, size_t source_bytes) {
    if (!is_shared(to, bytes)) {
        fail("cp.async: the target is not %zu bytes of shared memory", bytes);
    }
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) {
        fail("cp.async: an address is not aligned to %zu", bytes);
    }
    EMU_TSAN(__tsan_write_range(to, bytes);)
    Quiet quiet;
    memset(to, 0xff, bytes); /* from here to the wait it holds nothing */
    block->current->copies.push_back({to, from, bytes, source_bytes});
    block->current->open++;
}

void copy_async_commit() {
    Quiet quiet;
    block->current->groups.push_back(block->current->open);
    block->current->open = 0;
}

void copy_async_wait(size_t groups_left) {
    Fiber &f = *block->current;
    while (f.groups.size() > groups_left) {
        const size_t n = f.groups.front();
        for (size_t i = 0; i < n; i++) {
            const Copy &c = f.copies[i];
            EMU_TSAN(__tsan_write_range(c.to, c.bytes); __tsan_read_range(c.from, c.source_bytes);)
            Quiet quiet;
            memcpy(c.to, c.from, c.source_bytes);
            memset(static_cast<char *>(c.to) + c.source_bytes, 0, c.bytes - c.source_bytes);
        }
        Quiet quiet;
        f.copies.erase(f.copies.begin(), f.copies.begin() + static_cast<ptrdiff_t>(n));
        f.groups.pop_front();
    }
}

bool describe_shared(const void *p, char *out, size_t bytes) {
    for (const Shared &s : block->shared) {
        const char *at = static_cast<const char *>(p);
        if (s.mapped && at >= s.pages && at < s.pages + s.mapped) {
            snprintf(out, bytes, "byte %td of %zu bytes of shared memory", at - s.at, s.bytes);
            return true;
        }
    }
    return false;
}

} // namespace simt
