# Installs GANTRY_BINARY_DIR to a fresh prefix, builds the consumer project against it and runs it.
#   cmake -D GANTRY_BINARY_DIR=... -D SOURCE_DIR=... -D WORK_DIR=... -D GENERATOR=... -D CXX=...
#         -D SANITIZE=... -D GOLDEN=... -P consumer_test.cmake
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(flags "")
if(SANITIZE)
  set(flags -fsanitize=${SANITIZE})
endif()
file(REMOVE_RECURSE ${WORK_DIR})
run(${CMAKE_COMMAND} --install ${GANTRY_BINARY_DIR} --prefix ${WORK_DIR}/prefix)
run(${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${WORK_DIR}/build -G ${GENERATOR}
    -D CMAKE_CXX_COMPILER=${CXX} -D CMAKE_PREFIX_PATH=${WORK_DIR}/prefix
    -D CMAKE_CXX_FLAGS=${flags} -D CMAKE_BUILD_TYPE=RelWithDebInfo
    -D CMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build)
run(${WORK_DIR}/build/consumer_runtime ${GOLDEN})
run(${WORK_DIR}/build/consumer_gantry ${GOLDEN})
run(${WORK_DIR}/prefix/bin/gantry --version)

# The same program by pkg-config, as a project without CMake would build it.
find_program(pkg_config pkg-config)
file(GLOB_RECURSE pc ${WORK_DIR}/prefix/gantry.pc)
if(pkg_config AND pc)
  cmake_path(GET pc PARENT_PATH pc_dir)
  set(ENV{PKG_CONFIG_PATH} ${pc_dir})
  execute_process(COMMAND ${pkg_config} --cflags --libs gantry OUTPUT_VARIABLE arguments
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND ${pkg_config} --variable=libdir gantry OUTPUT_VARIABLE libdir
                  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(arguments)
  run(${CXX} ${flags} -DGANTRY_PACKAGE_VERSION="pkg-config" ${SOURCE_DIR}/consumer.cpp
      ${SOURCE_DIR}/worker_pool.cpp ${SOURCE_DIR}/allocation_count.cpp
      -o ${WORK_DIR}/consumer_pkg_config ${arguments} -pthread -Wl,-rpath,${libdir})
  run(${WORK_DIR}/consumer_pkg_config ${GOLDEN} 100)
else()
  message(STATUS "no pkg-config here: that way is not tested")
endif()
