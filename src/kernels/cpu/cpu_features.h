// What this processor can run, asked once, and what winnow chooses of it.
//
// The environment variable WINNOW_ISA (portable, avx2, avx512, amx or neon) lowers the choice, for tests of every path.
#pragma once

#include <string>
#include <string_view>

namespace winnow {

struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx_vnni = false;     // 8-bit dot products in 256-bit registers, VEX encoded
  bool avx512 = false;       // F, BW, VL and DQ
  bool avx512_vnni = false;  // 8-bit dot products in 512-bit registers
  bool avx512_bf16 = false;
  bool amx_bf16 = false;  // the system's permission for tile registers included
  bool amx_int8 = false;
  bool neon = false;
};

/// Everything that processor and operating system allow. The first call asks the system for AMX's tile registers.
CpuFeatures machine_features();
/// `machine` lowered to the named level: "portable", "avx2", "avx512" (with its extensions), "amx" or "neon".
/// Throws Error where the name is unknown or the machine lacks the level.
CpuFeatures lower_features(const CpuFeatures& machine, std::string_view isa);
/// machine_features(), lowered to WINNOW_ISA where that is set. Throws as lower_features.
CpuFeatures chosen_features();
/// The level's name, with the extensions that matter: "avx512 (vnni, bf16)".
std::string describe_features(const CpuFeatures& features);

}  // namespace winnow
