# What perch is built from. What is missing is named by the Debian package that brings it.

function(perch_missing what package)
  message(FATAL_ERROR "perch needs ${what}, which is not installed.\n"
                      "On Debian: apt-get install ${package}   (tools/setup installs everything that is missing)\n")
endfunction()

# perch_pkg_config(PREFIX MODULE PACKAGE): the imported target PkgConfig::PREFIX.
macro(perch_pkg_config prefix module package)
  pkg_check_modules(${prefix} QUIET IMPORTED_TARGET ${module})
  if(NOT ${prefix}_FOUND)
    perch_missing(${module} ${package})
  endif()
endmacro()

# A macro, so that what the find modules set is seen by the caller.
macro(perch_find_dependencies)
  find_package(PkgConfig QUIET)
  if(NOT PkgConfig_FOUND)
    perch_missing(pkg-config pkgconf)
  endif()
  find_package(Threads REQUIRED)
  perch_pkg_config(CJSON libcjson libcjson-dev)
  if(PERCH_BUILD_TESTS OR PERCH_BUILD_TOOLS)
    perch_pkg_config(JANSSON jansson libjansson-dev)
  endif()
  perch_pkg_config(PCRE2 libpcre2-8 libpcre2-dev)
  perch_pkg_config(UTF8PROC libutf8proc libutf8proc-dev)
  perch_pkg_config(LMDB lmdb liblmdb-dev)
  perch_pkg_config(HIREDIS hiredis libhiredis-dev)
  # It says -D_FILE_OFFSET_BITS=64 to all who use it, though its functions have no offsets: with that the C library's have
  # other names (pread64), which the tests that make them fail don't know.
  set_property(TARGET PkgConfig::HIREDIS PROPERTY INTERFACE_COMPILE_OPTIONS "")
  perch_pkg_config(XXHASH libxxhash libxxhash-dev)
  # Debian's iniparser has no .pc file.
  find_library(INIPARSER_LIBRARY iniparser)
  find_path(INIPARSER_INCLUDE_DIR iniparser.h PATH_SUFFIXES iniparser)
  if(NOT INIPARSER_LIBRARY OR NOT INIPARSER_INCLUDE_DIR)
    perch_missing(iniparser libiniparser-dev)
  endif()
  if(PERCH_BUILD_TESTS)
    perch_pkg_config(CUNIT cunit libcunit1-dev)
  endif()
  if(PERCH_FUZZ)
    include(CheckSourceCompiles)
    set(CMAKE_REQUIRED_FLAGS -fsanitize=fuzzer)
    check_source_compiles(C "int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long n);
                             int LLVMFuzzerTestOneInput(const unsigned char *data, unsigned long n) {
                                 return data && n ? 0 : 0;
                             }" PERCH_HAVE_LIBFUZZER)
    unset(CMAKE_REQUIRED_FLAGS)
  endif()
endmacro()
