/*
 * sanitizers: what the emulation tells them. Its own sources are not instrumented by ThreadSanitizer (EMU_TSAN_BUILD says
 * that the others are), since it runs kernels' threads and streams under identities of their own.
 */
#ifndef PERCH_TESTS_EMULATION_SANITIZERS_HH
#define PERCH_TESTS_EMULATION_SANITIZERS_HH

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN_ON 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define EMU_ASAN_ON 1
#endif

#ifdef EMU_ASAN_ON
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMU_ASAN(...) __VA_ARGS__
#else
#define EMU_ASAN_ON 0
#define EMU_ASAN(...)
#endif

#ifdef EMU_TSAN_BUILD
#include <sanitizer/tsan_interface.h>
extern "C" {
void __tsan_ignore_thread_begin(void);
void __tsan_ignore_thread_end(void);
void __tsan_read_range(const void *, unsigned long);
void __tsan_write_range(void *, unsigned long);
}
#define EMU_TSAN_ON 1
#define EMU_TSAN(...) __VA_ARGS__
#else
#define EMU_TSAN_ON 0
#define EMU_TSAN(...)
#endif

/* Hides what the C library does for the emulation from ThreadSanitizer. */
struct Quiet {
    Quiet() { EMU_TSAN(__tsan_ignore_thread_begin();) }
    ~Quiet() { EMU_TSAN(__tsan_ignore_thread_end();) }
    Quiet(const Quiet &) = delete;
    Quiet &operator=(const Quiet &) = delete;
};

#endif
