# Options and defaults of the build.

function(gantry_tristate name doc)
  set(${name} AUTO CACHE STRING "${doc}: AUTO (used when found), ON (required), OFF")
  set_property(CACHE ${name} PROPERTY STRINGS AUTO ON OFF)
  if(NOT "${${name}}" MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "${name}: expected AUTO, ON or OFF, found '${${name}}'")
  endif()
endfunction()

gantry_tristate(GANTRY_WITH_MPI "Ranks over MPI")
gantry_tristate(GANTRY_WITH_CUDA "GPU kernels")
gantry_tristate(GANTRY_WITH_NCCL "Collectives over NCCL")
option(GANTRY_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(GANTRY_BUILD_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(GANTRY_BUILD_SHARED "Build libgantry.so beside the static libraries" ON)
option(GANTRY_BUILD_FUZZERS "Build the libFuzzer targets (needs clang)" OFF)
option(GANTRY_WERROR "Treat warnings as errors" OFF)
set(GANTRY_CUDA_ARCHS "80;90a-real" CACHE STRING
    "GPU architectures: 80 alone is code for sm_80 and PTX that later GPUs compile when they load it")
set(GANTRY_SANITIZE "" CACHE STRING "Sanitizers for everything, e.g. address,undefined or thread")

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(GANTRY_CCACHE ccache)
if(GANTRY_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${GANTRY_CCACHE}")
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${GANTRY_CCACHE}")
endif()
