// Hopper's instructions (sm_90a) under names of their own: mbarriers, bulk tensor copies, wgmma, register transfer
// between warpgroups. Shared memory is addressed as the instructions want it, by 32-bit addresses.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace winnow::cuda::hopper {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// threadIdx.x, read where it stands.
__device__ __forceinline__ int32_t thread_index() {
  int32_t index = 0;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

/// What all threads of a warp think alike, so that the compiler knows that they do: it lets no products run side by
/// side on ways that it takes for divergent.
__device__ __forceinline__ bool agree(bool mine) {
  return __any_sync(~0U, mine);
}

/// The same for numbers: descriptors are then made by the unit for what a warp shares.
__device__ __forceinline__ int32_t first_lane(int32_t x) {
  return __shfl_sync(~0U, x, 0);
}

// ---- mbarriers

using Barrier = uint64_t;

__device__ __forceinline__ void init_barrier(Barrier& barrier, uint32_t n_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(n_arrivals));
}

/// Makes initialised barriers known to the copy engine.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(Barrier& barrier, uint32_t n = 1) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(n) : "memory");
}

/// Lets the phase wait for `bytes` of bulk copies as well.
__device__ __forceinline__ void expect_bytes(Barrier& barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
}

/// Whether the phase of this parity is over; may sleep a little before it says no.
__device__ __forceinline__ bool is_over(Barrier& barrier, uint32_t parity) {
  uint32_t over = 0;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(over)
      : "r"(shared_address(&barrier)), "r"(parity)
      : "memory");
  return over != 0;
}

__device__ __forceinline__ void wait(Barrier& barrier, uint32_t parity) {
  while (!is_over(barrier, parity)) {
  }
}

/// The same of one who has time: waiting threads take issue slots from those that compute.
__device__ __forceinline__ void wait_at_ease(Barrier& barrier, uint32_t parity) {
  while (!is_over(barrier, parity)) __nanosleep(32);
}

// ---- barriers of some of a block's warps, by number

__device__ __forceinline__ void sync_named(int32_t id, int32_t n_threads) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/// Arrives without waiting for the others.
__device__ __forceinline__ void arrive_named(int32_t id, int32_t n_threads) {
  asm volatile("barrier.cta.arrive.aligned %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/// Whether any of the threads says yes.
__device__ __forceinline__ bool any_named(int32_t id, int32_t n_threads, bool mine) {
  uint32_t any = 0;
  asm volatile(
      "{\n"
      ".reg .pred p, q;\n"
      "setp.ne.u32 p, %3, 0;\n"
      "barrier.cta.red.or.pred.aligned q, %1, %2, p;\n"
      "selp.u32 %0, 1, 0, q;\n"
      "}\n"
      : "=r"(any)
      : "r"(id), "r"(n_threads), "r"(static_cast<uint32_t>(mine))
      : "memory");
  return any != 0;
}

// ---- copies

/// The box at (row, part) of a three-dimensional tensor into shared memory; completes on `barrier`.
__device__ __forceinline__ void copy_box(void* to, const CUtensorMap& map, Barrier& barrier, int32_t row,
                                         int32_t part) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(0), "r"(row), "r"(part)
      : "memory");
}

__device__ __forceinline__ void copy_16_bytes(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most kLeft groups of this thread's copies are unfinished.
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

/// Shows this thread's stores to shared memory to the tensor cores and the copy engine.
__device__ __forceinline__ void show_stores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- registers

template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- wgmma: d += a b, bf16 in, float out, by four warps
//
// Matrices in shared memory are swizzled by 128 bytes: rows of 64 values, groups of eight rows 1024 bytes apart.

/// A matrix whose rows are contiguous along the summed index.
__device__ __forceinline__ uint64_t rows_descriptor(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{1} << 16 | (address & 0x3ffff) >> 4;
}

/// A matrix whose rows run along the summed index; further columns, in groups of 64, lie `next` bytes apart.
__device__ __forceinline__ uint64_t columns_descriptor(uint32_t address, uint32_t next) {
  return uint64_t{1} << 62 | uint64_t{1024 / 16} << 32 | uint64_t{next / 16} << 16 | (address & 0x3ffff) >> 4;
}

/// What a descriptor grows by when its matrix lies `bytes` further on.
__device__ __forceinline__ constexpr uint64_t descriptor_offset(uint32_t bytes) {
  return bytes / 16;
}

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most kLeft groups are unfinished. kPlace keeps apart what the compiler might merge.
template <int kLeft, int kPlace = 0>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;  // %1" ::"n"(kLeft), "n"(kPlace) : "memory");
}

/// Keeps the compiler from moving work on registers across this point: products run behind its back.
template <int kN>
__device__ __forceinline__ void pin(float (&x)[kN]) {
#pragma unroll
  for (int i = 0; i < kN; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

__device__ __forceinline__ void pin(int32_t& x) {
  asm volatile("" : "+r"(x));
}

// clang-format off
#define WINNOW_D32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
                   "%27,%28,%29,%30,%31}"
#define WINNOW_D64 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
                   "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
                   "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"
#define WINNOW_D128 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26," \
                    "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
                    "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76," \
                    "%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100," \
                    "%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119," \
                    "%120,%121,%122,%123,%124,%125,%126,%127}"
#define WINNOW_F8(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3]), \
                     "+f"(d[(i) + 4]), "+f"(d[(i) + 5]), "+f"(d[(i) + 6]), "+f"(d[(i) + 7])
#define WINNOW_F32 WINNOW_F8(0), WINNOW_F8(8), WINNOW_F8(16), WINNOW_F8(24)
#define WINNOW_F64 WINNOW_F32, WINNOW_F8(32), WINNOW_F8(40), WINNOW_F8(48), WINNOW_F8(56)
#define WINNOW_F128 WINNOW_F64, WINNOW_F8(64), WINNOW_F8(72), WINNOW_F8(80), WINNOW_F8(88), WINNOW_F8(96), \
                    WINNOW_F8(104), WINNOW_F8(112), WINNOW_F8(120)
// clang-format on

/// Scores: d [64, 64], a [64, 16] in registers, b [16, 64] by a rows_descriptor. `add` false: d = a b.
__device__ __forceinline__ void multiply_rows(float (&d)[32], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WINNOW_D32
      ", {%32,%33,%34,%35}, %36, p, 1, 1, 0;\n"
      "}\n"
      : WINNOW_F32
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));
}

/// d [64, 128], b [16, 128].
__device__ __forceinline__ void multiply_rows(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WINNOW_D64
      ", {%64,%65,%66,%67}, %68, p, 1, 1, 0;\n"
      "}\n"
      : WINNOW_F64
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int32_t>(add)));
}

/// d [64, 64] with a by a rows_descriptor.
__device__ __forceinline__ void multiply_rows(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WINNOW_D32
      ", %32, %33, p, 1, 1, 0, 0;\n"
      "}\n"
      : WINNOW_F32
      : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
}

/// d [64, 256], b [16, 256].
__device__ __forceinline__ void multiply_rows(float (&d)[128], uint64_t a, uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " WINNOW_D128
      ", %128, %129, p, 1, 1, 0, 0;\n"
      "}\n"
      : WINNOW_F128
      : "l"(a), "l"(b), "r"(static_cast<int32_t>(add)));
}

/// Outputs: d [64, 64] += a b, a [64, 16] in registers, b [16, 64] by a columns_descriptor.
__device__ __forceinline__ void multiply_columns(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WINNOW_D32
               ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
               : WINNOW_F32
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/// d [64, 128] += a b, b [16, 128].
__device__ __forceinline__ void multiply_columns(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WINNOW_D64
               ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
               : WINNOW_F64
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef WINNOW_D32
#undef WINNOW_D64
#undef WINNOW_D128
#undef WINNOW_F8
#undef WINNOW_F32
#undef WINNOW_F64
#undef WINNOW_F128

// ---- arithmetic

__device__ __forceinline__ float exp2_fast(float x) {
  float y = 0;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Two floats as bf16, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed = 0;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

}  // namespace winnow::cuda::hopper
