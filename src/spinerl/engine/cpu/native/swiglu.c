/* SwiGLU: out = silu(gate) * up. */

#include "swiglu.h"

#include "kernels.h"

#define CHUNK 4096 /* numbers that a thread takes at a time */

/* 16 numbers of the gradients; of out too, unless that is NULL. */
INLINE void swiglu_backward_16(const float *gate, const float *up, const float *dout, float *dgate, float *dup, float *out)
{
    vec g = load(gate), u = load(up), d = load(dout), s = vec_sigmoid(g);
    if (out)
        store(out, g * s * u);
    store(dup, d * g * s);
    store(dgate, d * u * s * (1.0f + g * (1.0f - s)));
}

INLINE void swiglu_row_backward(long size, const float *gate, const float *up, const float *dout, float *dgate, float *dup,
                                float *out)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        swiglu_backward_16(gate + i, up + i, dout + i, dgate + i, dup + i, out ? out + i : NULL);
    if (i < size) {
        float g[LANES] = {0}, u[LANES] = {0}, d[LANES] = {0}, dg[LANES], du[LANES], y[LANES];
        copy_floats(g, gate + i, size - i);
        copy_floats(u, up + i, size - i);
        copy_floats(d, dout + i, size - i);
        swiglu_backward_16(g, u, d, dg, du, y);
        copy_floats(dgate + i, dg, size - i);
        copy_floats(dup + i, du, size - i);
        if (out)
            copy_floats(out + i, y, size - i);
    }
}

int swiglu_forward(int num_threads, long size, const float *gate, const float *up, float *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (size > PARALLEL_SIZE)
    for (long i = 0; i < size; i += CHUNK)
        swiglu_row(min_long(CHUNK, size - i), gate + i, up + i, out + i);
    return OK;
}

int swiglu_backward(int num_threads, long size, const float *gate, const float *up, const float *dout, float *dgate,
                    float *dup)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (size > PARALLEL_SIZE)
    for (long i = 0; i < size; i += CHUNK)
        swiglu_row_backward(min_long(CHUNK, size - i), gate + i, up + i, dout + i, dgate + i, dup + i, NULL);
    return OK;
}

/* Output and gradients (rows, size) for the rows `index` of gate and up (any, size). */
int swiglu_recompute_backward(int num_threads, long rows, long size, const int64_t *index, const float *gate,
                              const float *up, const float *dout, float *out, float *dgate, float *dup)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (rows * size > PARALLEL_SIZE)
    for (long row = 0; row < rows; row++)
        swiglu_row_backward(size, gate + index[row] * size, up + index[row] * size, dout + row * size, dgate + row * size,
                            dup + row * size, out + row * size);
    return OK;
}
