#define WINNOW_VECTOR_BYTES 64
#define WINNOW_ROW_OPS kRowOpsAvx512
#include "kernels/cpu/row_ops_inl.h"
