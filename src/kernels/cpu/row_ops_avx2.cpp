#define WINNOW_VECTOR_BYTES 32
#define WINNOW_ROW_OPS kRowOpsAvx2
#include "kernels/cpu/row_ops_inl.h"
