# Install rules: the libraries, their public headers, the gantry command and a CMake package, so
# that another project says find_package(gantry CONFIG) and links gantry::gantry (shared) or
# gantry::runtime (static).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gantry)

set(libraries gantry_kernels gantry_parallel gantry_mpi gantry_loader gantry_runtime)
if(GANTRY_BUILD_SHARED)
  list(APPEND libraries gantry_shared)
endif()
install(TARGETS ${libraries}
        EXPORT gantry-targets
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gantry)
install(TARGETS gantry RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

# Headers that include other projects' headers are not installed; check_includes.py has the list and
# makes sure that no public header includes one of them.
file(STRINGS ${PROJECT_SOURCE_DIR}/tools/check_includes.py internal_headers
     REGEX "^    \"(kernels|parallel|loader|runtime)/.*\\.h\",$")
set(excluded)
foreach(line IN LISTS internal_headers)
  string(REGEX REPLACE "^ *\"(.*)\",$" "\\1" header ${line})
  string(REPLACE "." "\\." header ${header})
  list(APPEND excluded REGEX "/${header}$" EXCLUDE)
endforeach()
install(DIRECTORY kernels parallel loader runtime
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/gantry
        FILES_MATCHING PATTERN "*.h" ${excluded})

install(EXPORT gantry-targets NAMESPACE gantry:: DESTINATION ${package_dir})
configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/tools/cmake/gantry-config.cmake.in
  ${PROJECT_BINARY_DIR}/gantry-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gantry-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/gantry-config.cmake
              ${PROJECT_BINARY_DIR}/gantry-config-version.cmake
        DESTINATION ${package_dir})

# For builds without CMake: pkg-config --cflags --libs gantry.
if(GANTRY_BUILD_SHARED)
  configure_file(${PROJECT_SOURCE_DIR}/tools/cmake/gantry.pc.in ${PROJECT_BINARY_DIR}/gantry.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/gantry.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endif()
