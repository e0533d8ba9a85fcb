// low_bit: the plain loops, which compilers turn into multiplications of 16 numbers at once here.
#include "attention/low_bit_inl.h"
#include "kernels/cpu/low_bit.h"

namespace winnow::cpu {

const LowBitKernel kLowBitAvx2 = {kGroup, low_bit_query_bytes, low_bit_pack_query, low_bit_dot};

}  // namespace winnow::cpu
