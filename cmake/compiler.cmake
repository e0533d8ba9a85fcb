# Warnings are errors (GCC's, the compiler that we build with), sanitizers, and the flags of each instruction set that
# kernels are compiled for.
add_library(winnow_flags INTERFACE)
target_compile_options(winnow_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
                                              $<$<CXX_COMPILER_ID:GNU>:-Werror> -fno-math-errno)
target_include_directories(winnow_flags INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)

# Only winnow's own code is instrumented: every target of ours links winnow_flags, ggml does not. Optimised a little:
# tests that run in minutes, traces that name the line. GCC's analysis of uninitialised values gives false alarms on
# instrumented code.
if(WINNOW_SANITIZE)
  target_compile_options(winnow_flags INTERFACE -fsanitize=${WINNOW_SANITIZE} -fno-sanitize-recover=all
                                                -fno-omit-frame-pointer -O1 -g1 -Wno-maybe-uninitialized)
  target_link_options(winnow_flags INTERFACE -fsanitize=${WINNOW_SANITIZE})
endif()

find_program(CCACHE ccache)
if(CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
endif()

# winnow_isa_flags(FILE...): a source named *_avx2.cpp, *_avx512.cpp or *_amx.cpp is compiled for that instruction set;
# whether this machine may run it is decided at run time. On other processors these files are left out (see src).
function(winnow_isa_flags)
  foreach(file ${ARGN})
    if(file MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
    elseif(file MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx512bf16;-mfma;-mf16c;-mprefer-vector-width=512")
    elseif(file MATCHES "_amx\\.cpp$")
      set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS
        "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mavx512bf16;-mfma;-mf16c;-mamx-tile;-mamx-bf16;-mamx-int8")
    endif()
  endforeach()
endfunction()

# GCC 12 and 13 warn of overlapping copies inside std::string's own operator+ and assign, where there are none (GCC bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 14)
  target_compile_options(winnow_flags INTERFACE -Wno-restrict)
endif()
