# Dependencies, one imported target each, found on the system first. scripts/setup installs the Debian packages.
#   fmt            MIT         libfmt-dev
#   CLI11          BSD-3       libcli11-dev         command line (tools)
#   nlohmann_json  MIT         nlohmann-json3-dev   JSON lines (tools), chat templates' values
#   PCRE2          BSD-3       libpcre2-dev         pre-tokenizers' regular expressions
#   oneDNN         Apache-2.0  libdnnl-dev          matrix products of prefill
#   GoogleTest     BSD-3       libgtest-dev libgmock-dev
#   ggml           MIT         system copy, else the source inside the PyPI sdist llama-cpp-python (scripts/fetch-ggml)
find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(dnnl REQUIRED)

find_path(PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY pcre2-8 REQUIRED)
add_library(PCRE2::PCRE2 UNKNOWN IMPORTED)
set_target_properties(PCRE2::PCRE2 PROPERTIES IMPORTED_LOCATION ${PCRE2_LIBRARY}
                      INTERFACE_INCLUDE_DIRECTORIES ${PCRE2_INCLUDE_DIR})

include(ggml)  # winnow_ggml
