#include "kernels/cuda/cublas.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace winnow::cuda {
namespace {

/// Where the system looks for libraries, where the toolkit is that winnow was built with, and where one usually is.
void* open_library() {
  const std::string name = fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR);
  std::string reason = "no reason was given";
  for (const std::string_view folder : {"", WINNOW_CUDA_LIBRARIES "/", "/usr/local/cuda/lib64/"}) {
    void* library = dlopen(fmt::format("{}{}", folder, name).c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) return library;
    if (const char* error = dlerror(); folder.empty() && error != nullptr) reason = error;
  }
  fail(
      "device cuda: {} was found neither among the system's libraries (LD_LIBRARY_PATH adds folders) nor in {} nor in "
      "/usr/local/cuda/lib64: {}",
      name, WINNOW_CUDA_LIBRARIES, reason);
}

Cublas load() {
  void* library = open_library();
  Cublas table{};
  const auto find = [library](auto& function, const char* name) {
    void* address = dlsym(library, name);
    if (address == nullptr) fail("device cuda: libcublasLt.so.{} has no function {}", CUBLAS_VER_MAJOR, name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  find(table.create, "cublasLtCreate");
  find(table.destroy, "cublasLtDestroy");
  find(table.status_string, "cublasLtGetStatusString");
  find(table.desc_create, "cublasLtMatmulDescCreate");
  find(table.desc_destroy, "cublasLtMatmulDescDestroy");
  find(table.desc_set, "cublasLtMatmulDescSetAttribute");
  find(table.layout_create, "cublasLtMatrixLayoutCreate");
  find(table.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(table.preference_create, "cublasLtMatmulPreferenceCreate");
  find(table.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(table.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(table.get_heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(table.matmul, "cublasLtMatmul");
  return table;
}

}  // namespace

const Cublas& cublas() {
  static const Cublas kTable = load();
  return kTable;
}

}  // namespace winnow::cuda
