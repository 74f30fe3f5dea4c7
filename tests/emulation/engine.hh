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

/* Ends the kernel, from a signal handler on its stack. */
[[noreturn]] void fault(cudaError_t code, const std::string &what);

cudaError_t check_launch(const Kernel &kernel);

} // namespace simt

#endif
