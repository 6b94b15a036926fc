/* Rotary position embedding of heads, after their RMSNorm where they have one. */

#include "rope.h"

#include "kernels.h"

/* out (tokens, heads, head_dim) of inp, or the gradient of inp from that of out; cos and sin (tokens, head_dim). */
int rope(int num_threads, long tokens, long heads, long head_dim, const float *inp, const float *cos, const float *sin,
         int backward, float *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (tokens * heads * head_dim > PARALLEL_SIZE)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            const float *c = cos + token * head_dim, *s = sin + token * head_dim;
            const long at = (token * heads + head) * head_dim;
            if (backward)
                norm_rope_head_backward(head_dim, NULL, NULL, 0.0f, c, s, inp + at, out + at, NULL);
            else
                norm_rope_head(head_dim, inp + at, NULL, 0.0f, c, s, out + at);
        }
    return OK;
}

/* out (tokens, heads, head_dim) of the rows `index` (tokens) of inp (any, heads, head_dim); weight (head_dim) or NULL. */
int norm_rope_forward(int num_threads, long tokens, long heads, long head_dim, const int64_t *index, const float *inp,
                      const float *weight, float eps, const float *cos, const float *sin, float *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (tokens * heads * head_dim > PARALLEL_SIZE)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++)
            norm_rope_head(head_dim, inp + (index[token] * heads + head) * head_dim, weight, eps, cos + token * head_dim,
                           sin + token * head_dim, out + (token * heads + head) * head_dim);
    return OK;
}

/* dinp (tokens, heads, head_dim); dweight (NUM_PARTS, head_dim) as for `rms_norm_backward`, NULL without a weight. */
int norm_rope_backward(int num_threads, long tokens, long heads, long head_dim, const int64_t *index, const float *inp,
                       const float *weight, float eps, const float *cos, const float *sin, const float *dout, float *dinp,
                       float *dweight)
{
#pragma omp parallel for schedule(static) num_threads(num_threads) if (tokens * heads * head_dim > PARALLEL_SIZE)
    for (long part = 0; part < NUM_PARTS; part++)
        for (long token = tokens * part / NUM_PARTS; token < tokens * (part + 1) / NUM_PARTS; token++)
            for (long head = 0; head < heads; head++)
                norm_rope_head_backward(head_dim, inp + (index[token] * heads + head) * head_dim, weight, eps,
                                        cos + token * head_dim, sin + token * head_dim,
                                        dout + (token * heads + head) * head_dim,
                                        dinp + (token * heads + head) * head_dim,
                                        weight ? dweight + part * head_dim : NULL);
    return OK;
}
