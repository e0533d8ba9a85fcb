#include "kernels/cpu/cpu_features.h"

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace winnow {
namespace {

#if defined(__x86_64__)

struct CpuidLeaf {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf) {
  CpuidLeaf r;
  __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);
  return r;
}

bool bit(uint32_t word, int index) {
  return ((word >> index) & 1U) != 0;
}

// Register sets that the operating system saves on a task switch (XCR0).
uint64_t saved_registers() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out the 8 KB of tile registers only to processes that ask.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures f;
  const CpuidLeaf basic = cpuid(1, 0);
  const CpuidLeaf extended = cpuid(7, 0);
  const CpuidLeaf more = cpuid(7, 1);
  constexpr int kOsxsave = 27;
  if (!bit(basic.c, kOsxsave)) return f;
  const uint64_t saved = saved_registers();
  const bool ymm = (saved & 0x6U) == 0x6U;
  const bool zmm = (saved & 0xe6U) == 0xe6U;
  const bool tiles = ((saved >> 17) & 3U) == 3U;
  f.avx2 = ymm && bit(extended.b, 5) && bit(basic.c, 12) && bit(basic.c, 29);  // AVX2, FMA, F16C
  f.avx_vnni = f.avx2 && bit(more.a, 4);
  f.avx512 = f.avx2 && zmm && bit(extended.b, 16) && bit(extended.b, 17) && bit(extended.b, 30) && bit(extended.b, 31);
  f.avx512_vnni = f.avx512 && bit(extended.c, 11);
  f.avx512_bf16 = f.avx512 && bit(more.a, 5);
  constexpr int kAmxBf16 = 22;
  constexpr int kAmxTile = 24;
  constexpr int kAmxInt8 = 25;
  if (f.avx512 && tiles && bit(extended.d, kAmxTile) && ask_for_tiles()) {
    f.amx_bf16 = bit(extended.d, kAmxBf16);
    f.amx_int8 = bit(extended.d, kAmxInt8);
  }
  return f;
}

#elif defined(__aarch64__)

CpuFeatures detect() {
  CpuFeatures f;
  f.neon = true;  // part of every 64-bit ARM
  return f;
}

#else

CpuFeatures detect() {
  return {};
}

#endif

}  // namespace

CpuFeatures machine_features() {
  static const CpuFeatures kMachine = detect();
  return kMachine;
}

CpuFeatures lower_features(const CpuFeatures& machine, std::string_view isa) {
  CpuFeatures f = machine;
  if (isa != "amx") f.amx_bf16 = f.amx_int8 = false;
  if (isa == "avx2") f.avx512 = f.avx512_vnni = f.avx512_bf16 = f.avx_vnni = false;
  const bool known = isa == "portable" || isa == "avx2" || isa == "avx512" || isa == "amx" || isa == "neon";
  if (!known) fail("WINNOW_ISA is '{}'; it must be portable, avx2, avx512, amx or neon", isa);
  const bool present = isa == "portable" || (isa == "avx2" && f.avx2) || (isa == "avx512" && f.avx512) ||
                       (isa == "amx" && (f.amx_bf16 || f.amx_int8)) || (isa == "neon" && f.neon);
  if (!present) fail("WINNOW_ISA is '{}', but this machine has only {}", isa, describe_features(machine));
  return isa == "portable" ? CpuFeatures{} : f;
}

CpuFeatures chosen_features() {
  const char* isa = std::getenv("WINNOW_ISA");  // NOLINT(concurrency-mt-unsafe): read before threads start
  return isa == nullptr ? machine_features() : lower_features(machine_features(), isa);
}

std::string describe_features(const CpuFeatures& f) {
  if (f.neon) return "neon";
  if (!f.avx2) return "portable";
  if (!f.avx512) return f.avx_vnni ? "avx2 (vnni)" : "avx2";
  std::vector<std::string_view> extensions;
  if (f.avx512_vnni) extensions.emplace_back("vnni");
  if (f.avx512_bf16) extensions.emplace_back("bf16");
  std::string text = f.amx_bf16 || f.amx_int8 ? "amx" : "avx512";
  if (!extensions.empty()) text += fmt::format(" ({})", fmt::join(extensions, ", "));
  return text;
}

}  // namespace winnow
