/* Matmul of small blocks: c (m, n) = or += a (m, depth) times b (depth, n), n a multiple of LANES.
 *
 * The sums of a block of BLOCK_ROWS x (BLOCK_VECTORS * LANES) stay in registers; compilers leave vectors wider than the
 * processor's registers in memory, so here a vector is made of registers explicitly. */

#ifndef SPINERL_GEMM_H
#define SPINERL_GEMM_H

#include "simd.h"

#if defined(__AVX512F__)
#define BLOCK_ROWS 6
#define BLOCK_VECTORS 4
#define REG_BYTES 64
#elif defined(__AVX__)
#define BLOCK_ROWS 6
#define BLOCK_VECTORS 1
#define REG_BYTES 32
#else
#define BLOCK_ROWS 3
#define BLOCK_VECTORS 1
#define REG_BYTES 16
#endif
#define REG_LANES (REG_BYTES / 4)
#define REGS_PER_VECTOR (LANES / REG_LANES)
#define PREFETCH_ROWS 16 /* rows of b that are fetched ahead */
typedef float reg __attribute__((vector_size(REG_BYTES)));
typedef float unaligned_reg __attribute__((vector_size(REG_BYTES), aligned(4), may_alias));

#define PANEL (BLOCK_VECTORS * LANES) /* columns of a packed matrix that are stored together */

/* c (rows, vectors * LANES) of one block. */
SPECIALIZE void gemm_block(const int rows, const int vectors, long depth, const float *a, long a_row_stride,
                       long a_col_stride, const float *b, long b_stride, float *c, long c_stride, const int add,
                       const int prefetch)
{
    const int regs = vectors * REGS_PER_VECTOR;
    reg sums[BLOCK_ROWS][BLOCK_VECTORS * REGS_PER_VECTOR];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < regs; v++)
            sums[i][v] = add ? (reg)*(const unaligned_reg *)(c + i * c_stride + v * REG_LANES) : (reg){0};
    for (long d = 0; d < depth; d++) {
        const float *row = b + d * b_stride;
        if (prefetch)
            UNROLL for (int v = 0; v < vectors; v++)
                __builtin_prefetch(row + PREFETCH_ROWS * b_stride + v * LANES);
        reg b_regs[BLOCK_VECTORS * REGS_PER_VECTOR];
        UNROLL for (int v = 0; v < regs; v++)
            b_regs[v] = *(const unaligned_reg *)(row + v * REG_LANES);
        UNROLL for (int i = 0; i < rows; i++) {
            const float factor = a[i * a_row_stride + d * a_col_stride];
            UNROLL for (int v = 0; v < regs; v++)
                sums[i][v] += factor * b_regs[v];
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < regs; v++)
            *(unaligned_reg *)(c + i * c_stride + v * REG_LANES) = sums[i][v];
}

/* c (m, vectors * LANES): the blocks below one another, of which the first fetches b for the others. */
SPECIALIZE void gemm_column(const int vectors, long m, long depth, const float *a, long a_row_stride, long a_col_stride,
                        const float *b, long b_stride, float *c, long c_stride, const int add)
{
#define GEMM_BLOCK(rows, prefetch)                                                                                     \
    gemm_block(rows, vectors, depth, a + i * a_row_stride, a_row_stride, a_col_stride, b, b_stride, c + i * c_stride,  \
               c_stride, add, prefetch)
    long i = 0;
    if (vectors == BLOCK_VECTORS && m >= BLOCK_ROWS) {
        GEMM_BLOCK(BLOCK_ROWS, 1);
        i = BLOCK_ROWS;
    }
    for (; i + BLOCK_ROWS <= m; i += BLOCK_ROWS)
        GEMM_BLOCK(BLOCK_ROWS, 0);
    for (; i + 2 <= m; i += 2)
        GEMM_BLOCK(2, 0);
    for (; i < m; i++)
        GEMM_BLOCK(1, 0);
#undef GEMM_BLOCK
}

SPECIALIZE void gemm_any(long m, long n, long depth, const float *a, long a_row_stride, long a_col_stride, const float *b,
                     long b_stride, float *c, long c_stride, const int add)
{
    long j = 0;
    for (; j + PANEL <= n; j += PANEL)
        gemm_column(BLOCK_VECTORS, m, depth, a, a_row_stride, a_col_stride, b + j, b_stride, c + j, c_stride, add);
    for (; j + LANES <= n; j += LANES)
        gemm_column(1, m, depth, a, a_row_stride, a_col_stride, b + j, b_stride, c + j, c_stride, add);
}

/* gemm.c: c = a b and c += a b, each compiled once. */
void gemm(long m, long n, long depth, const float *a, long a_row_stride, long a_col_stride, const float *b, long b_stride,
          float *c, long c_stride);
void gemm_add(long m, long n, long depth, const float *a, long a_row_stride, long a_col_stride, const float *b,
              long b_stride, float *c, long c_stride);

#endif
