// Many small copies at once. An eviction moves a layer's cache slot by slot: one launch for thousands of slots.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention/device.h"
#include "kernels/cuda/context.h"

namespace winnow::cuda {

/// One copy within GPU memory.
struct Piece {
  std::byte* to;
  const std::byte* from;
  int64_t bytes;
};

/// Launches copies that do not overlap one another. pieces: device memory.
void copy_pieces(const Piece* pieces, int64_t n_pieces, cudaStream_t stream);

/// The same of copies that host memory tells: one upload and one launch, and one for each large copy.
void copy_all(CudaContext& context, std::span<const BytesCopy> copies);

/// Host data that goes to several places in GPU memory: one upload and one launch.
class Patches {
 public:
  /// GPU memory through which they go, and nothing else.
  struct Room {
    std::shared_ptr<std::byte> memory;
    size_t bytes = 0;
  };
  Patches(CudaContext& context, Room& room) : context_(context), room_(room) {}

  /// `from` is host memory and stays as it is until `apply`. Bytes and addresses are multiples of 4.
  void add(std::byte* to, const std::byte* from, size_t bytes) { pieces_.push_back({to, from, int64_t(bytes)}); }
  void apply(When when);

 private:
  CudaContext& context_;
  Room& room_;
  std::vector<Piece> pieces_;
};

}  // namespace winnow::cuda
