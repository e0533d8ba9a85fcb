# The device cuda. WINNOW_CUDA=AUTO builds it where it can run: nvcc of CUDA 12 or later (on the path, or where its
# installer puts it) and an NVIDIA driver are there, and the processor is this machine's. It takes two minutes on two
# cores, so that who has the compiler only and wants the device all the same says ON. No GPU is needed then.
find_program(WINNOW_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
set(nvcc_version 0)
if(WINNOW_NVCC)
  execute_process(COMMAND ${WINNOW_NVCC} --version OUTPUT_VARIABLE nvcc_says ERROR_QUIET)
  if(nvcc_says MATCHES "release ([0-9]+\\.[0-9]+)")
    set(nvcc_version ${CMAKE_MATCH_1})
  endif()
endif()
set(WINNOW_CUDA AUTO CACHE STRING "Build the device cuda: ON, OFF, or AUTO: where nvcc (12 or later) and a driver are")
if(WINNOW_CUDA STREQUAL "AUTO")
  set(winnow_cuda OFF)
  if(nvcc_version VERSION_GREATER_EQUAL 12 AND EXISTS /proc/driver/nvidia/version AND NOT CMAKE_CROSSCOMPILING AND NOT
     WINNOW_SANITIZE)
    set(winnow_cuda ON)
  endif()
else()
  set(winnow_cuda ${WINNOW_CUDA})
endif()

# 8.0's code serves 8.x, its PTX what comes after Hopper; 90a is Hopper's. One of them compiles in half the time.
set(WINNOW_CUDA_ARCHITECTURES 80 90a CACHE STRING "What the device cuda's portable kernels are compiled for")

if(winnow_cuda)
  if(nvcc_version VERSION_LESS 12)
    message(FATAL_ERROR "WINNOW_CUDA=${WINNOW_CUDA} needs nvcc of CUDA 12 or later; found: ${nvcc_version} (0: none)")
  endif()
  message(STATUS "CUDA: the device cuda is built (nvcc ${nvcc_version})")
  # Processors are asked for by flags below, since CMake 3.25 does not know all of them, nor nvcc's flag for C++20.
  set(CMAKE_CUDA_COMPILER ${WINNOW_NVCC})
  set(CMAKE_CUDA_ARCHITECTURES 80)
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  find_package(CUDAToolkit REQUIRED)
elseif(nvcc_version VERSION_GREATER 0)
  message(STATUS "CUDA: left out (WINNOW_CUDA=${WINNOW_CUDA}; nvcc ${nvcc_version} is there)")
else()
  message(STATUS "CUDA: left out (no nvcc was found)")
endif()

# winnow_cuda_kernels(NAME ARCHITECTURES FILE...): an object library of .cu files for ARCHITECTURES, compute capabilities
# without the point. nvcc hands the host's code to the C++ compiler; of its warnings only those that understand CUDA's own
# headers are asked for.
function(winnow_cuda_kernels name architectures)
  add_library(${name} OBJECT ${ARGN})
  set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES OFF CUDA_STANDARD 20)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/src)
  foreach(architecture ${architectures})
    set(code sm_${architecture})
    if(NOT architecture MATCHES "a$")  # code for one processor alone has no PTX for later ones
      set(code [sm_${architecture},compute_${architecture}])
    endif()
    target_compile_options(${name} PRIVATE "SHELL:-gencode arch=compute_${architecture},code=${code}")
  endforeach()
  target_compile_options(${name} PRIVATE --compiler-options=-Wall,-Wextra --Werror=all-warnings)
endfunction()
