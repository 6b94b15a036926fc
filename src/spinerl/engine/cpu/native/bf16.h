/* Matmul of factors rounded to bfloat16, sums in float32: in the processor's matrix registers (Intel AMX), else with
 * AVX-512's instruction for it, which takes pairs of numbers.
 *
 * `a` is bfloat16, row-major, its rows filled up with 0 to a multiple of BF16_DEPTH numbers; up to a multiple of BF16_ROWS
 * rows are read, those beyond m without an effect.  `b` (depth, n) is packed: for BF16_COLUMNS columns after the other, for
 * BF16_DEPTH rows after the other, four blocks of 16 columns, in which two rows of a column are neighbours.  A block is
 * what a matrix register holds: 16 rows of 64 bytes. */

#ifndef SPINERL_BF16_H
#define SPINERL_BF16_H

#include <stdint.h>

#include "simd.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#define HAS_BF16 1
#else
#define HAS_BF16 0
#endif
#if HAS_BF16 && defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

#define BF16_ROWS 16
#define BF16_DEPTH 32
#define BF16_COLUMNS 64
#define BF16_BLOCK (BF16_ROWS * BF16_DEPTH) /* numbers in a block */

/* Before and after bf16_gemm, in each thread. */
void bf16_begin(void);
void bf16_end(void);

/* out (rows, k rounded up) = inp (rows, k) with this stride, rounded; what fills up a row is 0. */
void bf16_round(long rows, long k, const float *inp, long stride, uint16_t *out);

/* c (m, n) with this stride = or += a (m, depth) b (depth, n). */
void bf16_gemm(long m, long n, long depth, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add);

#endif
