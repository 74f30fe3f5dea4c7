/* engine: what the emulated runtime asks of simt.cc beyond simt.hh. */
#ifndef PERCH_TESTS_EMULATION_ENGINE_HH
#define PERCH_TESTS_EMULATION_ENGINE_HH

#include "tests/emulation/simt.hh"

namespace simt {

/* A kernel did what ends it on a GPU, too; `code` is what all later calls return there. */
struct Fault : Error {
    cudaError_t code;
    Fault(cudaError_t c, const std::string &what) : Error(what), code(c) {}
};

bool in_kernel(); /* whether a kernel's thread runs on this OS thread */

/* Says what p is among the shared memory of the block that runs; false if it is nothing there. */
bool describe_shared(const void *p, char *text, size_t bytes);

/* Ends the kernel, from a signal handler on its stack, whose frames are left as they are: it touches `what`. */
[[noreturn]] void fault(cudaError_t code, const char *what);

cudaError_t check_launch(const Kernel &kernel);

/* names.cc: the name of a function of this process, for messages. */
std::string function_name(const void *function);

} // namespace simt

#endif
