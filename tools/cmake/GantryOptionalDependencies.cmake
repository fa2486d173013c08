# Finds what is used when it is there: MPI, the CUDA toolkit, NCCL. Nothing is downloaded.
# Sets GANTRY_HAVE_MPI, GANTRY_HAVE_CUDA, GANTRY_HAVE_NCCL.

set(GANTRY_HAVE_MPI OFF)
if(NOT GANTRY_WITH_MPI STREQUAL "OFF")
  find_package(MPI QUIET COMPONENTS CXX)
  if(MPI_CXX_FOUND)
    set(GANTRY_HAVE_MPI ON)
  elseif(GANTRY_WITH_MPI STREQUAL "ON")
    message(FATAL_ERROR "GANTRY_WITH_MPI=ON, but no MPI was found")
  endif()
endif()

set(GANTRY_HAVE_CUDA OFF)
if(NOT GANTRY_WITH_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit QUIET)
  if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE)
    set(GANTRY_HAVE_CUDA ON)
    set(CMAKE_CUDA_COMPILER "${CUDAToolkit_NVCC_EXECUTABLE}" CACHE FILEPATH "nvcc")
    set(CMAKE_CUDA_ARCHITECTURES "${GANTRY_CUDA_ARCHS}")
    enable_language(CUDA)
  elseif(GANTRY_WITH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GANTRY_WITH_CUDA=ON, but no CUDA toolkit with nvcc was found")
  endif()
endif()

# NCCL is loaded at run time with declarations of our own (GANTRY_USE_NCCL); its header, which needs
# CUDA's, only checks them (GANTRY_HAVE_NCCL).
set(GANTRY_USE_NCCL OFF)
set(GANTRY_HAVE_NCCL OFF)
if(NOT GANTRY_WITH_NCCL STREQUAL "OFF")
  set(GANTRY_USE_NCCL ON)
  find_path(GANTRY_NCCL_INCLUDE_DIR nccl.h HINTS ${CUDAToolkit_INCLUDE_DIRS})
  find_path(GANTRY_CUDART_INCLUDE_DIR cuda_runtime.h
            HINTS ${GANTRY_NCCL_INCLUDE_DIR} ${CUDAToolkit_INCLUDE_DIRS})
  mark_as_advanced(GANTRY_NCCL_INCLUDE_DIR GANTRY_CUDART_INCLUDE_DIR)
  if(GANTRY_NCCL_INCLUDE_DIR AND GANTRY_CUDART_INCLUDE_DIR)
    set(GANTRY_HAVE_NCCL ON)
  elseif(GANTRY_WITH_NCCL STREQUAL "ON")
    message(FATAL_ERROR "GANTRY_WITH_NCCL=ON, but nccl.h was not found")
  endif()
endif()
