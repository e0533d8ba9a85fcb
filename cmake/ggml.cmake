# winnow_ggml: the quantised types of GGUF and its reader. A system copy is taken first; else the source inside the PyPI
# sdist llama-cpp-python, which scripts/fetch-ggml downloads once and checks by hash, is built natively.
find_package(ggml CONFIG QUIET)
if(ggml_FOUND)
  add_library(winnow_ggml INTERFACE)
  target_link_libraries(winnow_ggml INTERFACE ggml::ggml)
else()
  set(WINNOW_GGML_SOURCE "" CACHE PATH "Folder with ggml's source; empty: fetched by scripts/fetch-ggml")
  if(NOT WINNOW_GGML_SOURCE)
    execute_process(COMMAND ${CMAKE_SOURCE_DIR}/scripts/fetch-ggml OUTPUT_VARIABLE WINNOW_GGML_SOURCE
                    OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  endif()
  add_library(winnow_ggml INTERFACE)
  # Builds under sanitizers take the archives of a finished plain build: ggml is not instrumented, and takes minutes.
  set(WINNOW_GGML_BUILD "" CACHE PATH "Folder of ggml's finished build; empty or unfinished: ggml is built here")
  if(EXISTS ${WINNOW_GGML_BUILD}/src/libggml-cpu.a)
    target_include_directories(winnow_ggml SYSTEM INTERFACE ${WINNOW_GGML_SOURCE}/src/../include)
    target_link_libraries(winnow_ggml INTERFACE ${WINNOW_GGML_BUILD}/src/libggml-cpu.a
                          ${WINNOW_GGML_BUILD}/src/libggml-base.a Threads::Threads ${CMAKE_DL_LIBS} m)
    return()
  endif()
  set(BUILD_SHARED_LIBS OFF)
  set(GGML_NATIVE ON CACHE BOOL "")
  set(GGML_OPENMP OFF CACHE BOOL "")
  set(GGML_BUILD_TESTS OFF CACHE BOOL "")
  set(GGML_BUILD_EXAMPLES OFF CACHE BOOL "")
  add_subdirectory(${WINNOW_GGML_SOURCE} ${CMAKE_BINARY_DIR}/ggml EXCLUDE_FROM_ALL SYSTEM)
  target_link_libraries(winnow_ggml INTERFACE ggml-base ggml-cpu)
endif()
