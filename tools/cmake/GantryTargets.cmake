# Functions that create Gantry's targets, so that each folder's CMakeLists.txt only lists files.

# Compiler flags that every target of ours shares.
function(gantry_configure target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  # nvcc has its own warnings, of which all count; its host code goes through no -Wconversion.
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow -Wconversion>)
  if(GANTRY_WERROR)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Werror> $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
  endif()
  if(GANTRY_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${GANTRY_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    # What tests themselves do is no product: without its checks they compile in 0.7 of the time.
    if(GANTRY_TEST_CODE)
      target_compile_options(${target} PRIVATE -fno-sanitize=undefined)
    endif()
    target_link_options(${target} PUBLIC -fsanitize=${GANTRY_SANITIZE})
  endif()
  if(GANTRY_BUILD_FUZZERS)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# gantry_add_library(kernels SOURCES a.cpp ... DEPENDS gantry::x ... PRIVATE_DEPENDS y ...)
function(gantry_add_library folder)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  set(target gantry_${folder})
  add_library(${target} STATIC ${ARG_SOURCES})
  add_library(gantry::${folder} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${folder})
  gantry_configure(${target})
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                              $<INSTALL_INTERFACE:include/gantry>)
  target_link_libraries(${target} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS})
endfunction()

# One shared library of all folders, libgantry.so: what their public headers declare, nothing else.
function(gantry_add_shared_library)
  set(objects)
  foreach(folder kernels parallel loader runtime)
    list(APPEND objects $<TARGET_OBJECTS:gantry_${folder}>)
  endforeach()
  if(TARGET gantry_kernels_sm90a)
    list(APPEND objects $<TARGET_OBJECTS:gantry_kernels_sm90a>)
  endif()
  add_library(gantry_shared SHARED ${objects})
  add_library(gantry::gantry ALIAS gantry_shared)
  set_target_properties(gantry_shared PROPERTIES OUTPUT_NAME gantry EXPORT_NAME gantry
                        LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION}
                        SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
  gantry_configure(gantry_shared)
  target_include_directories(gantry_shared INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                                     $<INSTALL_INTERFACE:include/gantry>)
  target_link_libraries(gantry_shared PRIVATE $<BUILD_INTERFACE:fmt::fmt>
                                              $<BUILD_INTERFACE:spdlog::spdlog>
                                              $<BUILD_INTERFACE:OpenMP::OpenMP_CXX>
                                              ${CMAKE_DL_LIBS})
  if(GANTRY_HAVE_CUDA)
    target_link_libraries(gantry_shared PRIVATE $<BUILD_INTERFACE:CUDA::cudart_static>)
  endif()
  # A missing symbol shows here and not in the program that loads the library; sanitizers' own
  # symbols come from that program.
  if(NOT GANTRY_SANITIZE)
    target_link_options(gantry_shared PRIVATE -Wl,--no-undefined)
  endif()
endfunction()

# Sets the instruction-set flags of single files; nothing else in the build has any.
function(gantry_isa_sources isa)
  set(avx2 -mavx2 -mfma -mf16c)
  # GCC 12's AVX-512 headers read variables that they leave undefined on purpose (GCC PR 105593).
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -Wno-uninitialized
             -Wno-maybe-uninitialized)
  set(avx512_bf16 ${avx512} -mavx512bf16)
  set(avx512_vnni ${avx512} -mavx512vnni)
  set(avx512_vbmi ${avx512_bf16} -mavx512vbmi)
  string(TOLOWER ${isa} key)
  if(NOT DEFINED ${key})
    message(FATAL_ERROR "gantry_isa_sources: unknown ISA '${isa}'")
  endif()
  # -ffp-contract=off: a product and a sum fuse only where the code says so, so that results do not
  # depend on what the compiler makes of an expression.
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${${key}};-ffp-contract=off")
endfunction()

# gantry_add_test(safetensors loader/safetensors_test.cpp [DEPENDS ...] [LABELS ...] [TIMEOUT s])
function(gantry_add_test name source)
  cmake_parse_arguments(ARG "" "TIMEOUT" "DEPENDS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  set(target ${name}_test)
  add_executable(${target} ${source})
  gantry_configure(${target})
  # What tests do themselves is a small part of their time; -O3 would double that of compiling them.
  # Tests of kernels sum in double next to them: -O0 would double their time.
  if(GANTRY_SANITIZE AND NOT CMAKE_CURRENT_SOURCE_DIR MATCHES "/tests/kernels$")
    target_compile_options(${target} PRIVATE -O0)
  else()
    target_compile_options(${target} PRIVATE -O1)
  endif()
  target_link_libraries(${target} PRIVATE gantry::runtime gantry_test_support GTest::gtest_main
                                          GTest::gmock ${ARG_DEPENDS})
  add_test(NAME ${name} COMMAND ${target})
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT})
  if(ARG_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}")
  endif()
endfunction()

function(gantry_print_summary)
  message(STATUS "Gantry ${PROJECT_VERSION}: ${CMAKE_BUILD_TYPE}, ${CMAKE_CXX_COMPILER_ID} "
                 "${CMAKE_CXX_COMPILER_VERSION}")
  foreach(part MPI CUDA)
    if(GANTRY_HAVE_${part})
      message(STATUS "  ${part}: found")
    else()
      message(STATUS "  ${part}: not used (GANTRY_WITH_${part}=${GANTRY_WITH_${part}})")
    endif()
  endforeach()
  if(GANTRY_HAVE_NCCL)
    message(STATUS "  NCCL: loaded at run time; declarations checked against "
                   "${GANTRY_NCCL_INCLUDE_DIR}/nccl.h")
  elseif(GANTRY_USE_NCCL)
    message(STATUS "  NCCL: loaded at run time; no nccl.h (with cuda_runtime.h) here, so our own "
                   "declarations are not checked against it")
  else()
    message(STATUS "  NCCL: not used (GANTRY_WITH_NCCL=OFF)")
  endif()
  if(NOT GANTRY_HAVE_CUDA)
    message(STATUS "  no CUDA toolkit: this build is CPU only")
  endif()
endfunction()
