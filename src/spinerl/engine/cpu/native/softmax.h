/* The softmax of one query's scores for two lists of keys: those of the prompt and the row's own. */

#ifndef SPINERL_SOFTMAX_H
#define SPINERL_SOFTMAX_H

#include <math.h>

#include "simd.h"

/* Turns scores into exp(score - max), in place: `length` and `own_length` of them, about 0 from there up to `columns` and
 * `own_columns`, multiples of LANES.  Returns the log-sum-exp; *inv_sum is 1 / the sum of the new numbers. */
INLINE float softmax_numerators(float *prompt, long length, long columns, float *own, long own_length, long own_columns,
                                float *inv_sum)
{
    for (long j = length; j < columns; j++)
        prompt[j] = -1e30f;
    for (long j = own_length; j < own_columns; j++)
        own[j] = -1e30f;
    vec maxima = load(own), sums = {0};
    for (long j = 0; j < columns; j += LANES)
        maxima = vec_max(load(prompt + j), maxima);
    for (long j = 0; j < own_columns; j += LANES)
        maxima = vec_max(load(own + j), maxima);
    const float max = vec_reduce_max(maxima);
    for (long j = 0; j < columns; j += LANES) {
        vec weight = vec_exp(load(prompt + j) - max);
        sums += weight;
        store(prompt + j, weight);
    }
    for (long j = 0; j < own_columns; j += LANES) {
        vec weight = vec_exp(load(own + j) - max);
        sums += weight;
        store(own + j, weight);
    }
    const float sum = vec_sum(sums);
    *inv_sum = 1.0f / sum;
    return max + logf(sum);
}

#endif
