# cmake -DSOURCE=DIR -DFILE=FILE -P commit.cmake: writes the commit that SOURCE stands at, if FILE says another one.
execute_process(COMMAND git -C "${SOURCE}" describe --always --dirty --abbrev=12 OUTPUT_VARIABLE commit
                ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
if(failed OR commit STREQUAL "")
  set(commit unknown)
endif()
set(text "#include \"commit.h\"\n\nconst char tool_commit[] = \"${commit}\";\n")
set(old "")
if(EXISTS "${FILE}")
  file(READ "${FILE}" old)
endif()
if(NOT old STREQUAL text)
  file(WRITE "${FILE}" "${text}")
endif()
