# cmake --install: the header, the shared library, the command, and what pkg-config and CMake need to find them.
include(CMakePackageConfigHelpers)

install(TARGETS perch EXPORT perchTargets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_COMPONENT development
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES include/perch/perch.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/perch)
if(TARGET perch_cli)
  # The prefix may be moved as a whole: the command looks for the library beside itself.
  file(RELATIVE_PATH bin_to_lib "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
  set_target_properties(perch_cli PROPERTIES INSTALL_RPATH "$ORIGIN/${bin_to_lib}")
  install(TARGETS perch_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/perch)
install(EXPORT perchTargets NAMESPACE perch:: DESTINATION ${package_dir})
configure_package_config_file(cmake/perchConfig.cmake.in perchConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(perchConfigVersion.cmake COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH pc_to_prefix "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
file(RELATIVE_PATH prefix_to_lib "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_LIBDIR}")
file(RELATIVE_PATH prefix_to_include "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(cmake/perch.pc.in perch.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/perchConfig.cmake" "${PROJECT_BINARY_DIR}/perchConfigVersion.cmake"
        DESTINATION ${package_dir})
install(FILES "${PROJECT_BINARY_DIR}/perch.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
