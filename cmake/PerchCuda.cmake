# The CUDA backend by nvcc: libperch_cuda, which perch loads at run time. Kernels (.cu) are compiled by commands of their own, so
# that the project needs no CUDA language, whose flags would have to agree with the C compiler's.

set(PERCH_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, or AUTO: where nvcc and cuBLASLt are found")
set_property(CACHE PERCH_CUDA PROPERTY STRINGS AUTO ON OFF)
# Machine code for these, and PTX of the last for GPUs to come.
set(PERCH_CUDA_ARCHITECTURES 80 90 CACHE STRING "Compute capabilities that kernels are compiled for")

# perch_cuda_lacks(REASON): ends perch_find_cuda without CUDA.
macro(perch_cuda_lacks reason)
  if(PERCH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "PERCH_CUDA=ON, but ${reason}.\n")
  endif()
  message(STATUS "CUDA backend: not built, ${reason}")
  return()
endmacro()

# Sets PERCH_CUDA_FOUND, and then PERCH_NVCC, PERCH_NVCC_INCLUDE_DIR and PERCH_NVCC_LIBRARIES.
function(perch_find_cuda)
  set(PERCH_CUDA_FOUND OFF PARENT_SCOPE)
  if(NOT PERCH_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "PERCH_CUDA is ${PERCH_CUDA}; it can be ON, OFF or AUTO.\n")
  endif()
  if(PERCH_CUDA STREQUAL "OFF")
    return()
  endif()
  if(PERCH_CUDA STREQUAL "AUTO" AND (PERCH_SANITIZE OR PERCH_FUZZ))
    perch_cuda_lacks("with sanitizers it is only on demand (PERCH_CUDA=ON)")
  endif()
  find_program(PERCH_NVCC NAMES "$ENV{CUDACXX}" nvcc HINTS "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin)
  if(NOT PERCH_NVCC)
    perch_cuda_lacks("nvcc is not there (CUDACXX, PATH, /usr/local/cuda)")
  endif()
  execute_process(COMMAND "${PERCH_NVCC}" --version OUTPUT_VARIABLE version RESULT_VARIABLE failed ERROR_QUIET)
  string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" version "${version}")
  if(failed OR NOT version)
    perch_cuda_lacks("${PERCH_NVCC} does not run")
  endif()
  set(version "${CMAKE_MATCH_1}")
  if(version VERSION_LESS 12.0)
    perch_cuda_lacks("${PERCH_NVCC} is of CUDA ${version}, and 12.0 is the least")
  endif()
  file(REAL_PATH "${PERCH_NVCC}" nvcc)
  cmake_path(GET nvcc PARENT_PATH bin)
  cmake_path(GET bin PARENT_PATH toolkit)
  set(places "${toolkit}" "${toolkit}/targets/${CMAKE_SYSTEM_PROCESSOR}-linux")
  find_path(PERCH_NVCC_INCLUDE_DIR cublasLt.h HINTS ${places} PATH_SUFFIXES include)
  find_library(PERCH_CUBLASLT cublasLt HINTS ${places} PATH_SUFFIXES lib64 lib)
  find_library(PERCH_CUDART cudart_static HINTS ${places} PATH_SUFFIXES lib64 lib)
  # The driver's own library is on machines with a GPU alone; the toolkit has one to link with.
  find_library(PERCH_LIBCUDA cuda HINTS ${places} PATH_SUFFIXES lib64/stubs lib/stubs)
  foreach(what NVCC_INCLUDE_DIR CUBLASLT CUDART LIBCUDA)
    if(NOT PERCH_${what})
      set(NVCC_INCLUDE_DIR_is "cublasLt.h")
      set(CUBLASLT_is "libcublasLt")
      set(CUDART_is "libcudart_static.a")
      set(LIBCUDA_is "libcuda or its stub")
      perch_cuda_lacks("${${what}_is} is not in ${toolkit}")
    endif()
  endforeach()
  message(STATUS "CUDA backend: ${PERCH_NVCC} (CUDA ${version}) for sm_${PERCH_CUDA_ARCHITECTURES}")
  set(PERCH_CUDA_FOUND ON PARENT_SCOPE)
  # The runtime is linked in; what is in it besides the C library's is its own affair.
  set(PERCH_NVCC_LIBRARIES "${PERCH_CUBLASLT}" "${PERCH_CUDART}" "${PERCH_LIBCUDA}" Threads::Threads ${CMAKE_DL_LIBS}
      rt m PARENT_SCOPE)
endfunction()

# perch_nvcc_objects(OUT file...): the object files of .cu files of the current folder.
function(perch_nvcc_objects out)
  set(flags -std=c++17 -O3 -lineinfo -Werror all-warnings
      "-Xcompiler=-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-Wall,-Wextra"
      "-I${PROJECT_SOURCE_DIR}" "-I${PROJECT_SOURCE_DIR}/include")
  foreach(architecture IN LISTS PERCH_CUDA_ARCHITECTURES)
    list(APPEND flags "-gencode=arch=compute_${architecture},code=sm_${architecture}")
  endforeach()
  list(GET PERCH_CUDA_ARCHITECTURES -1 last)
  list(APPEND flags "-gencode=arch=compute_${last},code=compute_${last}")
  if(CMAKE_CUDA_HOST_COMPILER)
    list(APPEND flags -ccbin "${CMAKE_CUDA_HOST_COMPILER}")
  endif()
  set(objects)
  foreach(file IN LISTS ARGN)
    set(object "${CMAKE_CURRENT_BINARY_DIR}/${file}.o")
    add_custom_command(OUTPUT "${object}"
                       COMMAND "${PERCH_NVCC}" ${flags} -MD -MF "${object}.d" -c "${CMAKE_CURRENT_SOURCE_DIR}/${file}"
                               -o "${object}"
                       DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${file}" DEPFILE "${object}.d"
                       COMMENT "Building by nvcc ${file}" VERBATIM COMMAND_EXPAND_LISTS)
    list(APPEND objects "${object}")
  endforeach()
  set(${out} "${objects}" PARENT_SCOPE)
endfunction()

# perch_gpu_test(NAME file...): the program tests/NAME_gpu of C and C++ files, linked with the backend and CUDA's libraries, for
# machines with a GPU (tools/gpu-check). Built by the target gpu_tests alone.
function(perch_gpu_test name)
  if(NOT PERCH_CUDA_FOUND OR NOT PERCH_BUILD_TESTS OR NOT CMAKE_CXX_COMPILER_LOADED)
    return()
  endif()
  add_executable(${name}_gpu EXCLUDE_FROM_ALL ${ARGN})
  target_include_directories(${name}_gpu SYSTEM PRIVATE "${PERCH_NVCC_INCLUDE_DIR}")
  target_compile_definitions(${name}_gpu PRIVATE _GNU_SOURCE)
  target_compile_options(${name}_gpu PRIVATE -Wall -Wextra -Wshadow -Werror)
  target_link_libraries(${name}_gpu PRIVATE perch_cuda_static perch_test_support)
  set_target_properties(${name}_gpu PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests"
                        LINKER_LANGUAGE CXX)
  if(NOT TARGET gpu_tests)
    add_custom_target(gpu_tests)
  endif()
  add_dependencies(gpu_tests ${name}_gpu)
endfunction()
