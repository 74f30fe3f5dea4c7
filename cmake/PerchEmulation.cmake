# The CUDA backend on the CPU: its sources compiled for tests/emulation, where a C++ compiler and CUDA's headers are found.

# Sets PERCH_EMULATION.
macro(perch_find_emulation)
  set(PERCH_EMULATION OFF)
  include(CheckLanguage)
  check_language(CXX)
  find_path(PERCH_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS "$ENV{CUDA_PATH}/include" /usr/local/cuda/include)
  if(PERCH_BUILD_TESTS AND CMAKE_CXX_COMPILER AND PERCH_CUDA_INCLUDE_DIR)
    enable_language(CXX)
    set(CMAKE_CXX_STANDARD 17)
    set(CMAKE_CXX_STANDARD_REQUIRED ON)
    set(CMAKE_CXX_EXTENSIONS OFF)
    set(PERCH_EMULATION ON)
  endif()
endmacro()

# perch_emulated_options(TARGET): compiles its C, C++ and .cu files as those of the CUDA backend, for the CPU.
function(perch_emulated_options target)
  get_target_property(files ${target} SOURCES)
  foreach(file IN LISTS files)
    if(file MATCHES "\\.cu$")
      set_source_files_properties(${file} TARGET_DIRECTORY ${target} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
    endif()
  endforeach()
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}" "${PROJECT_SOURCE_DIR}/include")
  target_include_directories(${target} SYSTEM PRIVATE "${PERCH_CUDA_INCLUDE_DIR}")
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE $<$<COMPILE_LANGUAGE:CXX>:SIMT_EMULATE>)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Werror -Wno-unknown-pragmas
                         $<$<COMPILE_LANGUAGE:C>:-Wpedantic;-Wconversion;-Wstrict-prototypes;-Wmissing-prototypes>
                         "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include tests/emulation/simt.hh -include tests/emulation/ptx.hh>")
  target_link_libraries(${target} PRIVATE Threads::Threads m)
endfunction()

# perch_emulated_test(NAME file... [LABELS ...] [TIMEOUT seconds]): a CUnit program of C, C++ and .cu files, linked with the
# stand-ins for CUDA's libraries; run by ctest. Without the emulation there is no such target.
function(perch_emulated_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS" ${ARGN})
  if(NOT PERCH_EMULATION)
    return()
  endif()
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  perch_emulated_options(${name})
  target_link_libraries(${name} PRIVATE perch_emulation perch_emulated_base perch_test_support)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests" LINKER_LANGUAGE CXX)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  perch_test_properties(${name} ${ARG_TIMEOUT} emulated ${ARG_LABELS})
endfunction()
