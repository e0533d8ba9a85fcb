# Dependencies, one imported target each, found on the system first. scripts/setup installs the Debian packages.
#   fmt            MIT         libfmt-dev
#   CLI11          BSD-3       libcli11-dev         command line (tools)
#   nlohmann_json  MIT         nlohmann-json3-dev   JSON lines (tools), chat templates' values
#   PCRE2          BSD-3       libpcre2-dev         pre-tokenizers' regular expressions
#   oneDNN         Apache-2.0  libdnnl-dev          the machine's peak, to compare with
#   GoogleTest     BSD-3       libgtest-dev libgmock-dev
#   ggml           MIT         system copy, else the source inside the PyPI sdist llama-cpp-python (scripts/fetch-ggml)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)

# winnow_library(TARGET HEADER LIBRARY): an imported target for what brings no CMake files that serve. PCRE2 brings none;
# oneDNN's ask for OpenCL's headers, which its own library does not need.
function(winnow_library target header library)
  find_path(${library}_INCLUDE_DIR ${header} REQUIRED)
  find_library(${library}_LIBRARY ${library} REQUIRED)
  add_library(${target} UNKNOWN IMPORTED GLOBAL)
  set_target_properties(${target} PROPERTIES IMPORTED_LOCATION ${${library}_LIBRARY}
                        INTERFACE_INCLUDE_DIRECTORIES ${${library}_INCLUDE_DIR})
endfunction()
winnow_library(PCRE2::PCRE2 pcre2.h pcre2-8)
winnow_library(DNNL::dnnl oneapi/dnnl/dnnl.hpp dnnl)

include(ggml)  # winnow_ggml
