# The CUDA backend on the CPU: its sources compiled for tests/emulation, where a C++ compiler and CUDA's headers are found.

option(PERCH_SANITIZE_EMULATION "Build the emulation with sanitizers too, where those are on" OFF)

# Sets PERCH_EMULATION.
macro(perch_find_emulation)
  set(PERCH_EMULATION OFF)
  find_path(PERCH_CUDA_INCLUDE_DIR cublasLt.h HINTS "$ENV{CUDA_PATH}/include" /usr/local/cuda/include)
  # The C compiler's own kin, so that both bring the same sanitizers.
  if(NOT CMAKE_CXX_COMPILER AND NOT DEFINED ENV{CXX})
    string(REGEX REPLACE "clang([-0-9.]*)$" "clang++\\1" kin "${CMAKE_C_COMPILER}")
    string(REGEX REPLACE "gcc([-0-9.]*)$" "g++\\1" kin "${kin}")
    if(NOT kin STREQUAL CMAKE_C_COMPILER AND EXISTS "${kin}")
      set(CMAKE_CXX_COMPILER "${kin}" CACHE FILEPATH "The C++ compiler, for the emulation alone")
    endif()
  endif()
  include(CheckLanguage)
  check_language(CXX)
  if(PERCH_BUILD_TESTS AND CMAKE_CXX_COMPILER AND PERCH_CUDA_INCLUDE_DIR AND
     (PERCH_SANITIZE_EMULATION OR NOT PERCH_SANITIZE))
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
  # Names that the dynamic linker finds at once: a kernel asks for its thread's index all the time.
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Werror -Wno-unknown-pragmas -ftls-model=initial-exec
                         $<$<COMPILE_LANGUAGE:C>:-Wpedantic;-Wconversion;-Wstrict-prototypes;-Wmissing-prototypes>
                         "$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include tests/emulation/simt.hh -include tests/emulation/ptx.hh>")
  # Kernels' threads come and go by the million, each would have a heap of its own for what ASan thinks may outlive its function.
  if(PERCH_SANITIZE MATCHES "address")
    target_compile_options(${target} PRIVATE "$<$<COMPILE_LANG_AND_ID:CXX,GNU>:--param=asan-use-after-return=0>"
                           "$<$<COMPILE_LANG_AND_ID:CXX,Clang>:-fsanitize-address-use-after-return=never>")
  endif()
endfunction()

# perch_emulated_objects(OUT file...): the objects of these sources of the backend, which are compiled once however many tests
# want them.
function(perch_emulated_objects out)
  set(objects)
  foreach(file IN LISTS ARGN)
    cmake_path(GET file FILENAME name)
    string(MAKE_C_IDENTIFIER "perch_emulated_${name}" target)
    if(NOT TARGET ${target})
      add_library(${target} OBJECT EXCLUDE_FROM_ALL ${file})
      perch_emulated_options(${target})
    endif()
    list(APPEND objects $<TARGET_OBJECTS:${target}>)
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

# perch_emulated_backend(OUT): the objects of the whole backend.
function(perch_emulated_backend out)
  file(GLOB files CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/kernels/cuda/*.c" "${PROJECT_SOURCE_DIR}/kernels/cuda/*.cu")
  list(FILTER files EXCLUDE REGEX "_(test|testing)\\.")
  perch_emulated_objects(objects ${files})
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

# perch_emulated_test(NAME file... [BACKEND] [LABELS ...] [TIMEOUT seconds]): a CUnit program of these files and the stand-ins for
# CUDA's libraries, run by ctest. Of the backend it has the sources that are named, or with BACKEND all of them. Without the
# emulation there is no such target.
function(perch_emulated_test name)
  cmake_parse_arguments(ARG "BACKEND" "TIMEOUT" "LABELS" ${ARGN})
  if(NOT PERCH_EMULATION)
    return()
  endif()
  set(own)
  set(backend)
  foreach(file IN LISTS ARG_UNPARSED_ARGUMENTS)
    cmake_path(ABSOLUTE_PATH file BASE_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}" NORMALIZE)
    if(file MATCHES "/kernels/cuda/" AND NOT file MATCHES "_(test|testing)\\.")
      list(APPEND backend "${file}")
    else()
      list(APPEND own "${file}")
    endif()
  endforeach()
  perch_emulated_objects(objects ${backend})
  if(ARG_BACKEND)
    perch_emulated_backend(objects)
  endif()
  add_executable(${name} ${own} ${objects})
  perch_emulated_options(${name})
  target_link_libraries(${name} PRIVATE perch_emulation perch_emulated_base perch_test_support Threads::Threads m)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests" LINKER_LANGUAGE CXX)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 3600)
  endif()
  perch_test_properties(${name} ${ARG_TIMEOUT} emulated ${ARG_LABELS})
endfunction()
