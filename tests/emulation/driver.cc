/*
 * The driver's part that the backend calls: virtual memory management on memory files and mmap. As strict as the driver or
 * stricter: whole handles are mapped, whole mappings are unmapped, and a new mapping can't be touched before cuMemSetAccess.
 */
#include "tests/emulation/memory.hh"
#include "tests/emulation/queue.hh"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <memory>

namespace emu {
namespace {

struct Physical {
    int file = -1;
    size_t bytes = 0;
    size_t n_mappings = 0;
    bool released = false;
    bool filled = false; /* with NaN, when it is mapped for the first time */
};

struct Reserved {
    size_t bytes;
    uintptr_t taken; /* of the host, more on either side */
    size_t taken_bytes;
};

struct Virtual {
    std::map<uintptr_t, Reserved> reserved;
    std::map<CUmemGenericAllocationHandle, Physical> physical;
    CUmemGenericAllocationHandle next_handle = 0x7001;
};
Virtual &virtual_memory() {
    static Virtual *v = new Virtual;
    return *v;
}

bool aligned(uint64_t n) { return n % runtime().settings.granularity == 0; }

bool good_location(const CUmemLocation &l) {
    return l.type == CU_MEM_LOCATION_TYPE_DEVICE && l.id >= 0 &&
           static_cast<uint32_t>(l.id) < runtime().settings.n_devices;
}

bool reserved(uintptr_t p, size_t bytes) {
    const std::map<uintptr_t, Reserved> &all = virtual_memory().reserved;
    auto at = all.upper_bound(p);
    return at != all.begin() && (--at, p + bytes <= at->first + at->second.bytes && p + bytes > p);
}

typedef std::map<uintptr_t, Region>::iterator RegionAt;

/* Whether [p, p + bytes) is made of whole mappings, from *first to before *last. */
bool whole_mappings(uintptr_t p, size_t bytes, RegionAt *first, RegionAt *last) {
    std::map<uintptr_t, Region> &regions = memory().regions;
    RegionAt at = *first = regions.find(p);
    for (uintptr_t next = p; next < p + bytes; next += at->second.bytes, ++at) {
        if (at == regions.end() || at->first != next || at->second.type != Region::Type::mapped ||
            next + at->second.bytes > p + bytes) {
            return false;
        }
    }
    *last = at;
    return bytes > 0;
}

void give_back(std::map<CUmemGenericAllocationHandle, Physical>::iterator at) {
    if (at->second.released && at->second.n_mappings == 0) {
        close(at->second.file);
        discharge(at->second.bytes);
        virtual_memory().physical.erase(at);
    }
}

bool fill(Physical &p) {
    void *at = p.filled ? nullptr : mmap(nullptr, p.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p.file, 0);
    if (at == MAP_FAILED) {
        return false;
    }
    if (at) {
        memset(at, 0xff, p.bytes);
        munmap(at, p.bytes);
        p.filled = true;
    }
    return true;
}

void unmap(RegionAt at) {
    mmap(pointer(at->first), at->second.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
         0);
    auto handle = virtual_memory().physical.find(at->second.handle);
    memory().regions.erase(at);
    handle->second.n_mappings--;
    give_back(handle);
}

} // namespace

bool is_reserved(const void *p) { return reserved(address(p), 1); }

void forget_virtual_memory() {
    Virtual &v = virtual_memory();
    std::map<uintptr_t, Region> &regions = memory().regions;
    for (RegionAt at = regions.begin(); at != regions.end();) {
        RegionAt next = std::next(at);
        if (at->second.type == Region::Type::mapped) {
            unmap(at);
        }
        at = next;
    }
    while (!v.physical.empty()) {
        v.physical.begin()->second.released = true;
        give_back(v.physical.begin());
    }
    for (const auto &[at, r] : v.reserved) {
        retire(r.taken, r.taken_bytes);
    }
    v.reserved.clear();
}

std::string virtual_memory_leaks() {
    size_t mappings = 0;
    for (const auto &[at, r] : memory().regions) {
        mappings += r.type == Region::Type::mapped;
    }
    const Virtual &v = virtual_memory();
    if (!mappings && v.reserved.empty() && v.physical.empty()) {
        return "";
    }
    char text[128];
    snprintf(text, sizeof text, "%zu reserved ranges, %zu mappings, %zu pieces of memory by cuMemCreate",
             v.reserved.size(), mappings, v.physical.size());
    return text;
}

} // namespace emu

using namespace emu;

extern "C" {

CUresult cuInit(unsigned flags) {
    return driver_call("cuInit", CUDA_ERROR_UNKNOWN, kNoDevice, [&](Lock &) {
        if (flags) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (cudaError_t e = obstacle(kPlain)) {
            return static_cast<CUresult>(e);
        }
        runtime().initialised = true;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    return driver_call("cuDeviceGet", CUDA_ERROR_UNKNOWN, kPlain, [&](Lock &) {
        if (ordinal < 0 || static_cast<uint32_t>(ordinal) >= runtime().settings.n_devices) {
            return CUDA_ERROR_INVALID_DEVICE;
        }
        *device = ordinal;
        return CUDA_SUCCESS;
    });
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    return driver_call("cuDeviceGetAttribute", CUDA_ERROR_UNKNOWN, kPlain, [&](Lock &) {
        if (device < 0 || static_cast<uint32_t>(device) >= runtime().settings.n_devices) {
            return CUDA_ERROR_INVALID_DEVICE;
        }
        if (attribute != CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) {
            return CUDA_ERROR_INVALID_VALUE; /* one that nobody has asked for so far */
        }
        *value = !runtime().settings.no_vmm;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                       CUmemAllocationGranularity_flags option) {
    return driver_call("cuMemGetAllocationGranularity", CUDA_ERROR_UNKNOWN, kPlain, [&](Lock &) {
        if (!granularity || !prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || !good_location(prop->location) ||
            (option != CU_MEM_ALLOC_GRANULARITY_MINIMUM && option != CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (runtime().settings.no_vmm) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        *granularity = runtime().settings.granularity;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
    return driver_call("cuMemCreate", CUDA_ERROR_OUT_OF_MEMORY, kPlain, [&](Lock &) {
        if (!handle || !prop || prop->type != CU_MEM_ALLOCATION_TYPE_PINNED || !good_location(prop->location) ||
            flags || size == 0 || !aligned(size)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (runtime().settings.no_vmm) {
            return CUDA_ERROR_NOT_SUPPORTED;
        }
        if (!charge(size)) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        Physical p;
        p.bytes = size;
        p.file = memfd_create("device", MFD_CLOEXEC);
        if (p.file < 0 || ftruncate(p.file, static_cast<off_t>(size)) != 0) {
            if (p.file >= 0) {
                close(p.file);
            }
            discharge(size);
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        *handle = virtual_memory().next_handle++;
        virtual_memory().physical[*handle] = p;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
    return driver_call("cuMemRelease", CUDA_ERROR_UNKNOWN, kReleases, [&](Lock &) {
        auto at = virtual_memory().physical.find(handle);
        if (at == virtual_memory().physical.end() || at->second.released) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        at->second.released = true;
        give_back(at);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr addr,
                             unsigned long long flags) {
    return driver_call("cuMemAddressReserve", CUDA_ERROR_OUT_OF_MEMORY, kPlain, [&](Lock &) {
        const size_t granularity = runtime().settings.granularity;
        if (!ptr || size == 0 || !aligned(size) || (alignment & (alignment - 1)) || addr || flags) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        catch_faults();
        const size_t align = alignment > granularity ? alignment : granularity, all = size + 2 * align;
        void *p =
            all < size ? MAP_FAILED : mmap(nullptr, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        /* At least a page stays free on either side. */
        const uintptr_t at = round_up(address(p) + 4096, align);
        virtual_memory().reserved[at] = {size, address(p), all};
        *ptr = at;
        return CUDA_SUCCESS;
    });
}

CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size) {
    return driver_call("cuMemAddressFree", CUDA_ERROR_UNKNOWN, kReleases, [&](Lock &) {
        auto at = virtual_memory().reserved.find(ptr);
        if (at == virtual_memory().reserved.end() || at->second.bytes != size) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        auto region = memory().regions.lower_bound(ptr);
        if (region != memory().regions.end() && region->first < ptr + size) { /* something is mapped there */
            return CUDA_ERROR_INVALID_VALUE;
        }
        retire(at->second.taken, at->second.taken_bytes);
        memory().freed[ptr] = size;
        virtual_memory().reserved.erase(at);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,
                  unsigned long long flags) {
    return driver_call("cuMemMap", CUDA_ERROR_OUT_OF_MEMORY, kPlain, [&](Lock &) {
        Virtual &v = virtual_memory();
        auto physical = v.physical.find(handle);
        if (physical == v.physical.end() || physical->second.released || offset || flags || !aligned(ptr) ||
            size != physical->second.bytes || !reserved(ptr, size)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        auto next = memory().regions.lower_bound(ptr);
        const bool over = next != memory().regions.end() && next->first < ptr + size;
        if (over || (next != memory().regions.begin() && (--next, next->first + next->second.bytes > ptr))) {
            return CUDA_ERROR_INVALID_VALUE; /* over another mapping */
        }
        if (!fill(physical->second) ||
            mmap(pointer(ptr), size, PROT_NONE, MAP_SHARED | MAP_FIXED, physical->second.file, 0) == MAP_FAILED) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
        physical->second.n_mappings++;
        memory().regions[ptr] = {Region::Type::mapped, size, ptr, size, 0, false, handle};
        return CUDA_SUCCESS;
    });
}

CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t count) {
    return driver_call("cuMemSetAccess", CUDA_ERROR_OUT_OF_MEMORY, kPlain, [&](Lock &) {
        RegionAt first, last;
        if (!desc || count != 1 || !good_location(desc->location) || !whole_mappings(ptr, size, &first, &last) ||
            (desc->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE && desc->flags != CU_MEM_ACCESS_FLAGS_PROT_NONE)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        for (; first != last; ++first) {
            Region &r = first->second;
            r.access = desc->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
            mprotect(pointer(r.pages), r.page_bytes, r.access ? device_protection() : PROT_NONE);
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t size) {
    return driver_call("cuMemUnmap", CUDA_ERROR_UNKNOWN, kReleases, [&](Lock &) {
        RegionAt first, last;
        if (!whole_mappings(ptr, size, &first, &last)) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        while (first != last) { /* at once: work that is queued finds nothing there */
            unmap(first++);
        }
        return CUDA_SUCCESS;
    });
}

} // extern "C"
