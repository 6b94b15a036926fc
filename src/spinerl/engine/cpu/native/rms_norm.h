/* One row of RMSNorm: out = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps), x = inp, or inp + add if that is given. */

#ifndef SPINERL_RMS_NORM_H
#define SPINERL_RMS_NORM_H

#include <math.h>

#include "simd.h"

INLINE vec sum_at(const float *inp, const float *add, long i) { return add ? load(inp + i) + load(add + i) : load(inp + i); }
INLINE float scalar_sum_at(const float *inp, const float *add, long i) { return add ? inp[i] + add[i] : inp[i]; }

INLINE float rms_norm_rstd(long size, const float *inp, const float *add, float eps)
{
    vec squares = {0};
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        squares += sum_at(inp, add, i) * sum_at(inp, add, i);
    float sum = vec_sum(squares);
    for (; i < size; i++)
        sum += scalar_sum_at(inp, add, i) * scalar_sum_at(inp, add, i);
    return 1.0f / sqrtf(sum / (float)size + eps);
}

/* Returns rstd. */
INLINE float rms_norm_row(long size, const float *inp, const float *add, const float *weight, float eps, float *out)
{
    const float rstd = rms_norm_rstd(size, inp, add, eps);
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        store(out + i, load(weight + i) * (sum_at(inp, add, i) * rstd));
    for (; i < size; i++)
        out[i] = weight[i] * (scalar_sum_at(inp, add, i) * rstd);
    return rstd;
}

/* dinp = dresidual (if given) + rstd * weight * dout - x * rstd^3 * sum(dout * weight * x) / size, and
 * dweight += dout * x * rstd.  dinp may be dout. */
INLINE void rms_norm_row_backward(long size, const float *inp, const float *add, const float *weight, float rstd,
                                  const float *dout, const float *dresidual, float *dinp, float *dweight)
{
    vec sums = {0};
    long i = 0;
    for (; i + LANES <= size; i += LANES) {
        vec doutx = load(dout + i) * sum_at(inp, add, i);
        sums += doutx * load(weight + i);
        store(dweight + i, load(dweight + i) + doutx * rstd);
    }
    float sum = vec_sum(sums);
    for (; i < size; i++) {
        float doutx = dout[i] * scalar_sum_at(inp, add, i);
        sum += doutx * weight[i];
        dweight[i] += doutx * rstd;
    }
    const float factor = sum * rstd * rstd * rstd / (float)size;
    for (i = 0; i + LANES <= size; i += LANES) {
        vec dx = load(dout + i) * load(weight + i) * rstd - sum_at(inp, add, i) * factor;
        store(dinp + i, dresidual ? load(dresidual + i) + dx : dx);
    }
    for (; i < size; i++) {
        float dx = dout[i] * weight[i] * rstd - scalar_sum_at(inp, add, i) * factor;
        dinp[i] = dresidual ? dresidual[i] + dx : dx;
    }
}

#endif
