/* Matmul, packed weights, and the gradients of a linear layer out = inp weight^T. */

#include "gemm.h"

#include <string.h>

#include "kernels.h"

#define MAX_DEPTH 256 /* rows that are summed up at a time in grad_weight */
#define MAX_OUTPUTS 256 /* and rows of dweight that one thread has in its caches then */
#define CHUNK 96 /* rows that a thread takes through all panels in grad_input */

void gemm(long m, long n, long depth, const float *a, long a_row_stride, long a_col_stride, const float *b, long b_stride,
          float *c, long c_stride)
{
    gemm_any(m, n, depth, a, a_row_stride, a_col_stride, b, b_stride, c, c_stride, 0);
}

void gemm_add(long m, long n, long depth, const float *a, long a_row_stride, long a_col_stride, const float *b,
              long b_stride, float *c, long c_stride)
{
    gemm_any(m, n, depth, a, a_row_stride, a_col_stride, b, b_stride, c, c_stride, 1);
}

/* out (ceil(n / PANEL), k, PANEL) = weight (n, k), transposed within panels, with columns of 0 beyond n. */
int pack_panels(int num_threads, long n, long k, const float *weight, float *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (long p = 0; p < ceil_div(n, PANEL); p++)
        for (long d = 0; d < k; d++)
            for (long i = 0; i < PANEL; i++)
                out[(p * k + d) * PANEL + i] = p * PANEL + i < n ? weight[(p * PANEL + i) * k + d] : 0.0f;
    return OK;
}

/* dweight (n, k) = dout^T inp; dout (rows, n), inp (rows, k), k a multiple of LANES. */
int grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp, float *dweight)
{
    if (k % LANES)
        return UNKNOWN_SIZE;
    int status = OK;
    const long parts = num_threads * ceil_div(n, num_threads * MAX_OUTPUTS);
    const long outputs = round_up(ceil_div(n, parts), BLOCK_ROWS);
#pragma omp parallel for schedule(static) num_threads(num_threads) reduction(| : status)
    for (long part = 0; part < parts; part++) {
        const long first = part * outputs, m = min_long(outputs, n - first);
        if (m <= 0)
            continue;
        float *columns = alloc_floats(MAX_DEPTH * m); /* of dout */
        if (columns == NULL) {
            status = OUT_OF_MEMORY;
            continue;
        }
        for (long row = 0; row < rows; row += MAX_DEPTH) {
            const long depth = min_long(MAX_DEPTH, rows - row);
            for (long d = 0; d < depth; d++)
                memcpy(columns + d * m, dout + (row + d) * n + first, (size_t)m * sizeof(float));
            (row ? gemm_add : gemm)(m, k, depth, columns, 1, m, inp + row * k, k, dweight + first * k, k);
        }
        free(columns);
    }
    return status;
}

/* dinp (rows, n) = or += dout weight; dout (rows, k), weight (k, n), n a multiple of LANES. */
int grad_input(int num_threads, long rows, long k, long n, const float *dout, const float *weight, float *dinp, int add)
{
    if (n % LANES)
        return UNKNOWN_SIZE;
    const long panels = ceil_div(n, PANEL);
    float *packed = alloc_floats(panels * k * PANEL);
    if (packed == NULL)
        return OUT_OF_MEMORY;
#pragma omp parallel num_threads(num_threads)
    {
#pragma omp for schedule(static)
        for (long i = 0; i < panels * k; i++) {
            const long p = i / k, row = i % k;
            memcpy(packed + i * PANEL, weight + row * n + p * PANEL,
                   (size_t)min_long(PANEL, n - p * PANEL) * sizeof(float));
        }
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < ceil_div(rows, CHUNK); chunk++) {
            const long m = min_long(CHUNK, rows - chunk * CHUNK);
            for (long p = 0; p < panels; p++)
                (add ? gemm_add : gemm)(m, min_long(PANEL, n - p * PANEL), k, dout + chunk * CHUNK * k, k, 1,
                                        packed + p * k * PANEL, PANEL, dinp + chunk * CHUNK * n + p * PANEL, n);
        }
    }
    free(packed);
    return OK;
}
