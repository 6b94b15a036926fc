/* One row of SwiGLU: out = silu(gate) * up, silu(x) = x * sigmoid(x). */

#ifndef SPINERL_SWIGLU_H
#define SPINERL_SWIGLU_H

#include <string.h>

#include "simd.h"

INLINE void copy_floats(float *out, const float *inp, long count) { memcpy(out, inp, (size_t)count * sizeof(float)); }

INLINE void swiglu_row(long size, const float *gate, const float *up, float *out)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        store(out + i, load(gate + i) * vec_sigmoid(load(gate + i)) * load(up + i));
    if (i < size) {
        float g[LANES] = {0}, u[LANES] = {0}, y[LANES];
        copy_floats(g, gate + i, size - i);
        copy_floats(u, up + i, size - i);
        store(y, load(g) * vec_sigmoid(load(g)) * load(u));
        copy_floats(out + i, y, size - i);
    }
}

#endif
