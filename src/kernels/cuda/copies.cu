#include "kernels/cuda/copies.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/check.h"

namespace winnow::cuda {
namespace {

constexpr int kWarps = 8;
// Copies of this size and more are launched by themselves.
constexpr size_t kLarge = size_t{1} << 20;

template <typename Word>
__device__ void copy_words(const Piece& piece, int lane) {
  auto* to = reinterpret_cast<Word*>(piece.to);
  const auto* from = reinterpret_cast<const Word*>(piece.from);
  const int64_t n = piece.bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = lane; i < n; i += 32) to[i] = from[i];
}

/// One warp for each piece.
__global__ void copy_pieces_kernel(const Piece* pieces, int64_t n_pieces) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (index >= n_pieces) return;
  const Piece piece = pieces[index];
  const auto bits = reinterpret_cast<uintptr_t>(piece.to) | reinterpret_cast<uintptr_t>(piece.from) |
                    static_cast<uintptr_t>(piece.bytes);
  if (bits % 16 == 0) {
    copy_words<uint4>(piece, lane);
  } else if (bits % 4 == 0) {
    copy_words<uint32_t>(piece, lane);
  } else {
    copy_words<uint8_t>(piece, lane);
  }
}

}  // namespace

void copy_pieces(const Piece* pieces, int64_t n_pieces, cudaStream_t stream) {
  const auto n_blocks = static_cast<unsigned>((n_pieces + kWarps - 1) / kWarps);
  copy_pieces_kernel<<<n_blocks, 32 * kWarps, 0, stream>>>(pieces, n_pieces);
  check(cudaGetLastError(), "launching copies");
}

void copy_all(CudaContext& context, std::span<const BytesCopy> copies) {
  constexpr size_t kMost = Transfers::kPiece / sizeof(Piece);  // in one launch
  for (size_t first = 0; first < copies.size(); first += kMost) {
    const auto some = copies.subspan(first, std::min(kMost, copies.size() - first));
    std::byte* const staged = context.transfers.stage(some.size() * sizeof(Piece));
    auto* piece = reinterpret_cast<Piece*>(staged);
    for (const BytesCopy& copy : some) {
      if (copy.bytes >= kLarge) {
        check(cudaMemcpyAsync(copy.to, copy.from, copy.bytes, cudaMemcpyDeviceToDevice, context.stream),
              "copying on the GPU");
      } else {
        *piece++ = {copy.to, copy.from, static_cast<int64_t>(copy.bytes)};
      }
    }
    const int64_t n = piece - reinterpret_cast<Piece*>(staged);
    if (n == 0) continue;
    const auto table = context.memory.lend(static_cast<size_t>(n) * sizeof(Piece));
    context.transfers.upload_staged(table.get(), staged, static_cast<size_t>(n) * sizeof(Piece));
    copy_pieces(reinterpret_cast<const Piece*>(table.get()), n, context.stream);
  }
}

void Patches::apply(When when) {
  constexpr size_t kUnit = 16;
  const auto rounded_up = [](size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; };
  if (pieces_.size() == 1) {
    context_.transfers.upload(pieces_[0].to, pieces_[0].from, static_cast<size_t>(pieces_[0].bytes), when);
  } else if (!pieces_.empty()) {
    const size_t header = pieces_.size() * sizeof(Piece);
    size_t total = rounded_up(header);
    size_t at = total;
    for (const Piece& piece : pieces_) total += rounded_up(static_cast<size_t>(piece.bytes));
    if (total > room_.bytes) {
      room_ = {context_.memory.lend(2 * total), 2 * total};
      when = When::in_turn;  // launches that wait may still use this memory
    }
    std::vector<std::byte> all(total);
    for (Piece& piece : pieces_) {
      std::memcpy(all.data() + at, piece.from, static_cast<size_t>(piece.bytes));
      piece.from = room_.memory.get() + at;
      at += rounded_up(static_cast<size_t>(piece.bytes));
    }
    std::memcpy(all.data(), pieces_.data(), header);
    context_.transfers.upload(room_.memory.get(), all.data(), total, when);
    copy_pieces(reinterpret_cast<const Piece*>(room_.memory.get()), static_cast<int64_t>(pieces_.size()),
                context_.stream.at(when));
  }
  pieces_.clear();
}

}  // namespace winnow::cuda
