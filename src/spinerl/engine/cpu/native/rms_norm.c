/* RMSNorm of rows, and sums of rows. */

#include "rms_norm.h"

#include <stddef.h>

#include "kernels.h"

INLINE const float *indexed_row(const float *matrix, const int64_t *index, long row, long size)
{
    return matrix ? matrix + index[row] * size : NULL;
}

/* out (rows, size) and rstd (rows) of inp (rows, size), plus the rows `index` (rows) of add (any, size) if that is not
 * NULL.  rstd may be NULL. */
int rms_norm_forward(int num_threads, long rows, long size, const float *inp, const int64_t *index, const float *add,
                     const float *weight, float eps, float *out, float *rstd)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * size > PARALLEL_SIZE)
    for (long row = 0; row < rows; row++) {
        const float *other = indexed_row(add, index, row, size);
        const float found = rms_norm_row(size, inp + row * size, other, weight, eps, out + row * size);
        if (rstd)
            rstd[row] = found;
    }
    return OK;
}

/* dinp (rows, size), to which dresidual (rows, size) is added if that is not NULL; dweight (NUM_PARTS, size): partial
 * sums that start from what is there. */
int rms_norm_backward(int num_threads, long rows, long size, const float *inp, const int64_t *index, const float *add,
                      const float *weight, const float *rstd, const float *dout, const float *dresidual, float *dinp,
                      float *dweight)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * size > PARALLEL_SIZE)
    for (long part = 0; part < NUM_PARTS; part++)
        for (long row = rows * part / NUM_PARTS; row < rows * (part + 1) / NUM_PARTS; row++)
            rms_norm_row_backward(size, inp + row * size, indexed_row(add, index, row, size), weight, rstd[row],
                                  dout + row * size, dresidual ? dresidual + row * size : NULL, dinp + row * size,
                                  dweight + part * size);
    return OK;
}

/* out = inp + a[index] + b[index]; inp and out (rows, size), a and b (any, size). */
int add_indexed(int num_threads, long rows, long size, const int64_t *index, const float *inp, const float *a,
                const float *b, float *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * size > PARALLEL_SIZE)
    for (long row = 0; row < rows; row++) {
        const float *x = inp + row * size, *y = a + index[row] * size, *z = b + index[row] * size;
        long i = 0;
        for (; i + LANES <= size; i += LANES)
            store(out + row * size + i, load(x + i) + load(y + i) + load(z + i));
        for (; i < size; i++)
            out[row * size + i] = x[i] + y[i] + z[i];
    }
    return OK;
}
