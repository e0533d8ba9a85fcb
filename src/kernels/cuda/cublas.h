// cuBLASLt, loaded at its first use: linked, its 540 MB would be mapped before main() of every program, whether or not
// it has a GPU.
#pragma once

#include <cublasLt.h>

namespace winnow::cuda {

/// The functions that are used, under their names without cublasLt.
struct Cublas {
  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetStatusString) status_string;
  decltype(&cublasLtMatmulDescCreate) desc_create;
  decltype(&cublasLtMatmulDescDestroy) desc_destroy;
  decltype(&cublasLtMatmulDescSetAttribute) desc_set;
  decltype(&cublasLtMatrixLayoutCreate) layout_create;
  decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
  decltype(&cublasLtMatmulPreferenceCreate) preference_create;
  decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
  decltype(&cublasLtMatmulAlgoGetHeuristic) get_heuristic;
  decltype(&cublasLtMatmul) matmul;
};

/// Loads the library once; it stays. Throws Error that names what was looked for where it is not found.
const Cublas& cublas();

}  // namespace winnow::cuda
