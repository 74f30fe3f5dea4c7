/* Addresses, pages and accounts of the emulated device's memory, and of the host's that is pinned. */
#include "tests/emulation/memory.hh"
#include "tests/emulation/engine.hh"

#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace emu {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlign = 256;
constexpr size_t kRetired = size_t{1} << 40;
constexpr size_t kLarge = 16 << 20; /* above this, memory comes from a file of NaNs, copied where it is written to */

struct sigaction previous_segv, previous_bus;

/* The region that begins at p or before it, the nearest. */
std::map<uintptr_t, Region>::iterator nearest(uintptr_t p) {
    std::map<uintptr_t, Region> &regions = memory().regions;
    auto at = regions.upper_bound(p);
    return at == regions.begin() ? regions.end() : --at;
}

bool contains(const std::map<uintptr_t, Region>::iterator &at, uintptr_t p) {
    return at != memory().regions.end() && p < at->first + at->second.bytes;
}

/* Apart, as note_fault is. */
__attribute__((noinline)) void describe_fault(const void *p, char *text, size_t bytes) {
    if (!simt::describe_shared(p, text, bytes)) {
        Lock lock(runtime().mutex);
        snprintf(text, bytes, "%s", describe(p).c_str());
    }
}

void on_fault(int number, siginfo_t *info, void *context) {
    if (simt::in_kernel()) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, number);
        pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
        char text[256];
        describe_fault(info->si_addr, text, sizeof text);
        simt::fault(cudaErrorIllegalAddress, text);
    }
    auto at = nearest(address(info->si_addr));
    if (contains(at, address(info->si_addr)) && at->second.type != Region::Type::pinned) {
        static const char message[] = "emulation: host code touches device memory\n";
        (void)!write(STDERR_FILENO, message, sizeof message - 1);
    }
    struct sigaction &previous = number == SIGSEGV ? previous_segv : previous_bus;
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(number, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(number);
    } else { /* goes back to where it came from, which is deadly now */
        signal(number, SIG_DFL);
    }
}

bool open_nan_file() {
    Memory &m = memory();
    if (m.nan_file >= 0) {
        return true;
    }
    m.nan_file = memfd_create("nan", MFD_CLOEXEC);
    const std::string nan(kPage, '\xff');
    for (size_t i = 0; m.nan_file >= 0 && i < kLarge; i += kPage) {
        if (write(m.nan_file, nan.data(), kPage) != static_cast<ssize_t>(kPage)) {
            close(m.nan_file);
            m.nan_file = -1;
        }
    }
    return m.nan_file >= 0;
}

bool fill_pages(char *at, size_t bytes) {
    const int access = PROT_READ | PROT_WRITE;
    if (bytes <= kLarge) {
        if (mprotect(at, bytes, access) != 0) {
            return false;
        }
        memset(at, 0xff, bytes);
        return true;
    }
    if (!open_nan_file()) {
        return false;
    }
    for (size_t i = 0; i < bytes; i += kLarge) {
        const size_t n = bytes - i < kLarge ? bytes - i : kLarge;
        if (mmap(at + i, n, access, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, memory().nan_file, 0) == MAP_FAILED) {
            return false;
        }
    }
    return true;
}

/* Pages of NaNs between two that nobody can touch; 0 where there are none. */
uintptr_t take_pages(size_t bytes) {
    void *p = mmap(nullptr, bytes + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        return 0;
    }
    char *at = static_cast<char *>(p) + kPage;
    if (!fill_pages(at, bytes)) {
        munmap(p, bytes + 2 * kPage);
        return 0;
    }
    return address(at);
}

const char *name_of(Region::Type type) {
    return type == Region::Type::malloc ? "cudaMalloc" : type == Region::Type::pinned ? "cudaHostAlloc" : "cuMemMap";
}

} // namespace

Memory &memory() {
    static Memory *m = new Memory;
    return *m;
}

void retire(uintptr_t begin, size_t bytes) {
    Memory &m = memory();
    EMU_ASAN(__asan_poison_memory_region(pointer(begin), bytes);)
    mmap(pointer(begin), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    m.retired.push_back({begin, bytes});
    m.retired_bytes += bytes;
    while (m.retired_bytes > kRetired) {
        const auto [oldest, n] = m.retired.front();
        EMU_ASAN(__asan_unpoison_memory_region(pointer(oldest), n);)
        munmap(pointer(oldest), n);
        m.freed.erase(m.freed.lower_bound(oldest), m.freed.lower_bound(oldest + n));
        m.retired.pop_front();
        m.retired_bytes -= n;
    }
}

int device_protection() { return memory().exposed ? PROT_READ | PROT_WRITE : PROT_NONE; }

void expose_device(bool on) {
    Memory &m = memory();
    if (m.exposed == on) {
        return;
    }
    m.exposed = on;
    for (const auto &[at, r] : m.regions) {
        if (r.type != Region::Type::pinned && r.access) {
            mprotect(pointer(r.pages), r.page_bytes, device_protection());
        }
    }
}

void catch_faults() {
    static bool done;
    if (!done && !EMU_TSAN_ON) { /* ThreadSanitizer does not survive a change of stacks in a handler */
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
    }
    done = true;
}

uint64_t free_bytes() {
    const uint64_t all = runtime().settings.memory_bytes, used = memory().used;
    return all > used ? all - used : 0;
}

bool charge(uint64_t bytes) {
    Memory &m = memory();
    if (bytes > free_bytes()) {
        return false;
    }
    m.used += bytes;
    m.peak = m.used > m.peak ? m.used : m.peak;
    return true;
}

void discharge(uint64_t bytes) { memory().used -= bytes; }

void *allocate(Region::Type type, size_t bytes) {
    Memory &m = memory();
    const bool device = type == Region::Type::malloc;
    if (bytes == 0 || bytes > SIZE_MAX / 2) {
        return nullptr;
    }
    catch_faults();
    const size_t charged = device ? round_up(bytes, 512) : 0;
    if (!charge(charged)) {
        return nullptr;
    }
    const size_t padded = round_up(bytes, kAlign), page_bytes = round_up(padded, kPage);
    const uintptr_t pages = take_pages(page_bytes);
    if (!pages) {
        discharge(charged);
        return nullptr;
    }
    const uintptr_t at = pages + page_bytes - padded;
    if (device) {
        mprotect(pointer(pages), page_bytes, device_protection());
    }
    EMU_ASAN(__asan_poison_memory_region(pointer(pages), page_bytes);
             __asan_unpoison_memory_region(pointer(at), bytes);)
    m.regions[at] = {type, bytes, pages, page_bytes, charged, true, 0};
    return pointer(at);
}

bool release(Region::Type type, void *p) {
    Memory &m = memory();
    auto at = m.regions.find(address(p));
    if (at == m.regions.end() || at->second.type != type) {
        return false;
    }
    retire(at->second.pages - kPage, at->second.page_bytes + 2 * kPage);
    m.freed[at->first] = at->second.bytes;
    discharge(at->second.charged);
    m.regions.erase(at);
    return true;
}

Place place_of(const void *p, size_t bytes, bool *whole) {
    uintptr_t from = address(p);
    const uintptr_t end = from + bytes;
    auto at = nearest(from);
    *whole = false;
    if (!contains(at, from)) {
        return Place::host;
    }
    const Place place = at->second.type == Region::Type::pinned ? Place::pinned : Place::device;
    /* A range may go through several mappings that lie side by side. */
    while (contains(at, from) && at->second.access) {
        from = at->first + at->second.bytes;
        if (from >= end) {
            *whole = true;
            return place;
        }
        at = memory().regions.find(from);
        if (at == memory().regions.end() || at->second.type != Region::Type::mapped) {
            break;
        }
    }
    return place;
}

std::string describe(const void *p) {
    const uintptr_t to = address(p);
    char text[160];
    auto at = nearest(to);
    if (contains(at, to)) {
        const Region &r = at->second;
        snprintf(text, sizeof text, "%p: byte %zu of %zu by %s%s", p, to - at->first, r.bytes, name_of(r.type),
                 r.access ? "" : ", without access");
        return text;
    }
    auto gone = memory().freed.upper_bound(to);
    if (gone != memory().freed.begin() && to < (--gone)->first + gone->second) {
        snprintf(text, sizeof text, "%p: byte %zu of %zu that were freed", p, to - gone->first, gone->second);
        return text;
    }
    if (at != memory().regions.end() && to - at->first - at->second.bytes < (1u << 20)) {
        snprintf(text, sizeof text, "%p: %zu bytes behind %zu by %s", p, to - at->first - at->second.bytes,
                 at->second.bytes, name_of(at->second.type));
        return text;
    }
    auto next = memory().regions.upper_bound(to);
    if (next != memory().regions.end() && next->first - to < (1u << 20)) {
        snprintf(text, sizeof text, "%p: %zu bytes before %zu by %s", p, next->first - to, next->second.bytes,
                 name_of(next->second.type));
        return text;
    }
    snprintf(text, sizeof text, "%p: no memory of the device's", p);
    return text;
}

void forget_memory() {
    Memory &m = memory();
    forget_virtual_memory();
    while (!m.regions.empty()) {
        release(m.regions.begin()->second.type, pointer(m.regions.begin()->first));
    }
    m.used = m.peak = 0;
}

std::string memory_leaks() {
    std::string s = virtual_memory_leaks();
    for (Region::Type type : {Region::Type::malloc, Region::Type::pinned}) {
        size_t n = 0, bytes = 0;
        for (const auto &[at, r] : memory().regions) {
            if (r.type == type) {
                n++;
                bytes += r.bytes;
            }
        }
        if (n) {
            char text[96];
            snprintf(text, sizeof text, "%s%zu bytes by %s (%zu)", s.empty() ? "" : ", ", bytes, name_of(type), n);
            s += text;
        }
    }
    return s;
}

} // namespace emu

extern "C" {

uint64_t emulation_bytes(void) {
    Quiet quiet;
    emu::Lock lock(emu::runtime().mutex);
    return emu::memory().used;
}

uint64_t emulation_peak_bytes(void) {
    Quiet quiet;
    emu::Lock lock(emu::runtime().mutex);
    return emu::memory().peak;
}

bool emulation_accessible(const void *p, size_t bytes) {
    Quiet quiet;
    emu::Lock lock(emu::runtime().mutex);
    bool whole;
    return emu::place_of(p, bytes, &whole) == emu::Place::device && whole;
}

} // extern "C"
