/* Rotary position embedding of one head (a, b), halves of head_dim: (a cos - b sin, b cos + a sin); with `weight`, of the
 * head's RMSNorm. */

#ifndef SPINERL_ROPE_H
#define SPINERL_ROPE_H

#include <stddef.h>

#include "rms_norm.h"
#include "simd.h"

/* out may be inp. */
INLINE void norm_rope_head(long head_dim, const float *inp, const float *weight, float eps, const float *cos,
                           const float *sin, float *out)
{
    const long half = head_dim / 2;
    const float rstd = weight ? rms_norm_rstd(head_dim, inp, NULL, eps) : 1.0f;
    long i = 0;
    for (; i + LANES <= half; i += LANES) {
        vec a = load(inp + i), b = load(inp + half + i);
        if (weight)
            a = load(weight + i) * (a * rstd), b = load(weight + half + i) * (b * rstd);
        store(out + i, a * load(cos + i) - b * load(sin + i));
        store(out + half + i, b * load(cos + half + i) + a * load(sin + half + i));
    }
    for (; i < half; i++) {
        float a = inp[i], b = inp[half + i];
        if (weight)
            a = weight[i] * (a * rstd), b = weight[half + i] * (b * rstd);
        out[i] = a * cos[i] - b * sin[i];
        out[half + i] = b * cos[half + i] + a * sin[half + i];
    }
}

/* dinp, and dweight += its gradient if there is a weight; without one inp and dweight are not read. */
INLINE void norm_rope_head_backward(long head_dim, const float *inp, const float *weight, float eps, const float *cos,
                                    const float *sin, const float *dout, float *dinp, float *dweight)
{
    const long half = head_dim / 2;
    long i = 0;
    for (; i + LANES <= half; i += LANES) {
        vec da = load(dout + i), db = load(dout + half + i);
        store(dinp + i, da * load(cos + i) + db * load(sin + half + i));
        store(dinp + half + i, db * load(cos + half + i) - da * load(sin + i));
    }
    for (; i < half; i++) {
        float da = dout[i], db = dout[half + i];
        dinp[i] = da * cos[i] + db * sin[half + i];
        dinp[half + i] = db * cos[half + i] - da * sin[i];
    }
    if (weight)
        rms_norm_row_backward(head_dim, inp, NULL, weight, rms_norm_rstd(head_dim, inp, NULL, eps), dinp, NULL, dinp,
                              dweight);
}

#endif
