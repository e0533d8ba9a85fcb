#define WINNOW_VECTOR_BYTES 16
#define WINNOW_ROW_OPS kRowOpsPortable
#include "kernels/cpu/row_ops_inl.h"
