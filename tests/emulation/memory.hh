/*
 * memory: the device's memory on the host. Device pointers are addresses of this process, as kernels need them; the pages
 * behind them can be touched only while queued work runs, so that host code which follows one is caught. An allocation's end
 * is that of its last page, and what is freed stays out of bounds. All functions want the runtime's lock.
 */
#ifndef PERCH_TESTS_EMULATION_MEMORY_HH
#define PERCH_TESTS_EMULATION_MEMORY_HH

#include "tests/emulation/runtime.hh"

#include <cstdint>
#include <deque>
#include <map>
#include <string>

namespace emu {

struct Region {
    enum class Type { malloc, pinned, mapped } type;
    size_t bytes;    /* that the caller may use */
    uintptr_t pages; /* where its own pages begin */
    size_t page_bytes;
    size_t charged;                      /* of the device's memory */
    bool access;                         /* mapped: after cuMemSetAccess */
    CUmemGenericAllocationHandle handle; /* mapped: of what */
};

struct Memory {
    std::map<uintptr_t, Region> regions;              /* by the address that the caller has */
    std::map<uintptr_t, size_t> freed;                /* for messages */
    std::deque<std::pair<uintptr_t, size_t>> retired; /* addresses that are out of use, the oldest first */
    size_t retired_bytes = 0;
    uint64_t used = 0, peak = 0;
    bool exposed = false;
    int nan_file = -1;
};
Memory &memory();

inline uintptr_t address(const void *p) { return reinterpret_cast<uintptr_t>(p); }
inline void *pointer(uintptr_t p) { return reinterpret_cast<void *>(p); }
inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

/* Takes addresses out of use for as long as there are enough others, so that an old pointer is not soon a new one. */
void retire(uintptr_t begin, size_t bytes);

/* What device pages are mapped with at the moment. */
int device_protection();
/* While queued work runs the device's pages can be touched. */
void expose_device(bool on);
/* From now on faults in kernels are the kernels'. */
void catch_faults();

/* Counts device memory; false where there is not so much left. discharge: gives back. */
bool charge(uint64_t bytes);
void discharge(uint64_t bytes);
uint64_t free_bytes();

/* cudaMalloc, cudaHostAlloc: NULL where there is no room. Aligned to 256, 0xFF (NaN) throughout. false: that is no such pointer. */
void *allocate(Region::Type type, size_t bytes);
bool release(Region::Type type, void *p);

enum class Place { host, pinned, device };
/* Where p points; *whole: all of the bytes lie in memory of that kind that can be used. */
Place place_of(const void *p, size_t bytes, bool *whole);
/* For messages: "8 bytes behind 512 bytes by cudaMalloc". */
std::string describe(const void *p);

/* Whether p lies in a reserved range of virtual memory, mapped or not. */
bool is_reserved(const void *p);

void forget_memory();
std::string memory_leaks();
/* driver.cc: handles and addresses of virtual memory management. */
void forget_virtual_memory();
std::string virtual_memory_leaks();

} // namespace emu

#endif
