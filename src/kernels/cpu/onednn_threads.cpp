#include "kernels/cpu/onednn_threads.h"

#include <dlfcn.h>

namespace winnow::cpu {

void keep_onednn_on_this_thread() {
  // The setting is one of each thread. It belongs to whichever OpenMP library oneDNN was built with, and there is none
  // where oneDNN has another runtime, so it is looked up and not linked.
  static const auto kSet = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
  thread_local bool done = false;
  if (done || kSet == nullptr) return;
  kSet(1);
  done = true;
}

}  // namespace winnow::cpu
