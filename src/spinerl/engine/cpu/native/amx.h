/* Matmul in the processor's matrix registers (Intel AMX): factors rounded to bfloat16, sums in float32.
 *
 * A register holds 16 rows of 64 bytes.  `a` is bfloat16, row-major, its rows filled up with 0 to a multiple of AMX_DEPTH
 * numbers; up to a multiple of AMX_ROWS rows are read, those beyond m without an effect.  `b` (depth, n) is packed: for AMX_COLUMNS columns after the other, for
 * AMX_DEPTH rows after the other, four registers of 16 columns, in which two rows of a column are neighbours. */

#ifndef SPINERL_AMX_H
#define SPINERL_AMX_H

#include <stdint.h>

#include "simd.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

#define AMX_ROWS 16
#define AMX_DEPTH 32
#define AMX_COLUMNS 64
#define AMX_TILE (AMX_ROWS * AMX_DEPTH) /* numbers in a register */

/* Before and after amx_gemm, in each thread. */
void amx_begin(void);
void amx_end(void);

/* out (rows, k rounded up) = inp (rows, k) with this stride, rounded; what fills up a row is 0. */
void amx_round(long rows, long k, const float *inp, long stride, uint16_t *out);

/* c (m, n) with this stride = or += a (m, depth) b (depth, n). */
void amx_gemm(long m, long n, long depth, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add);

#endif
