# perch_sources(file...): adds sources of the current folder to the library.
function(perch_sources)
  foreach(file IN LISTS ARGN)
    target_sources(perch_objects PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
  endforeach()
endfunction()

# perch_test_properties(NAME TIMEOUT label...): what every test has in common. For each label there is a target
# tests_LABEL that builds just the programs with that label. The seconds of TIMEOUT end what hangs, and are far more than
# a slow machine needs: a test that is about speed measures it itself.
function(perch_test_properties name timeout)
  set_tests_properties(${name} PROPERTIES TIMEOUT ${timeout} LABELS "${ARGN}" SKIP_RETURN_CODE 77)
  if(PERCH_SANITIZE)
    set_tests_properties(${name} PROPERTIES ENVIRONMENT "\
ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1:allocator_may_return_null=1;\
UBSAN_OPTIONS=print_stacktrace=1;\
TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1")
  endif()
  foreach(label IN LISTS ARGN)
    if(NOT TARGET tests_${label})
      add_custom_target(tests_${label})
    endif()
    if(TARGET ${name})
      add_dependencies(tests_${label} ${name})
    endif()
  endforeach()
endfunction()

# perch_unit_test(NAME file... [LABELS ...] [TIMEOUT seconds]): a CUnit program that sees the library's internals; run by
# ctest. The label `threads` has it run under ThreadSanitizer as well.
function(perch_unit_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS" ${ARGN})
  if(NOT PERCH_BUILD_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE perch_static perch_test_support perch_warnings)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 3600)
  endif()
  perch_test_properties(${name} ${ARG_TIMEOUT} unit ${ARG_LABELS})
endfunction()
