/* Sampling a token from each row of logits. */

#include <math.h>

#include "kernels.h"
#include "simd.h"

#define CHUNK 128 /* neighboring tokens whose weights are summed up before the sampled one is looked for */

/* 16 logits times a factor; -inf beyond the `left` ones that there are. */
INLINE vec scaled_logits(const float *logits, long left, float factor)
{
    if (left >= LANES)
        return load(logits) * factor;
    float tail[LANES];
    for (long i = 0; i < LANES; i++)
        tail[i] = i < left ? logits[i] : -INFINITY;
    return load(tail) * factor;
}

/* exp(scores - max), 0 where that is too small, and scores - max, which is kept finite: 0 times -inf is not a number. */
INLINE vec softmax_numerator(vec scores, float max, vec *difference)
{
    vec x = scores - max;
    *difference = vec_max(x, broadcast(-1e4f));
    vec weight = vec_exp(x);
    return (vec)((vec_int)weight & (x > broadcast(-87.0f)));
}

/* The first token whose cumulative weight exceeds `wanted`; the last with a weight where rounding leaves none. */
static long find_token(const float *logits, long vocab_size, float factor, float max, const float *chunk_sums, double wanted)
{
    const long chunks = ceil_div(vocab_size, CHUNK);
    double cumulative = 0.0;
    long last = 0;
    for (long chunk = 0; chunk < chunks; chunk++) {
        if (!(cumulative + chunk_sums[chunk] > wanted) && chunk + 1 < chunks) {
            cumulative += chunk_sums[chunk];
            continue;
        }
        float weights[CHUNK] = {0};
        vec difference;
        const long first = chunk * CHUNK, count = min_long(CHUNK, vocab_size - first);
        for (long i = 0; i < count; i += LANES) {
            vec scores = scaled_logits(logits + first + i, vocab_size - first - i, factor);
            store(weights + i, softmax_numerator(scores, max, &difference));
        }
        for (long i = 0; i < count; i++) {
            cumulative += weights[i];
            if (weights[i] > 0.0f)
                last = first + i;
            if (weights[i] > 0.0f && cumulative > wanted)
                return first + i;
        }
    }
    return last;
}

static void sample_row(const float *logits, long vocab_size, float factor, float uniform, float *chunk_sums, int64_t *token,
                       float *logprob, float *entropy)
{
    vec maxima = broadcast(-INFINITY);
    for (long i = 0; i < vocab_size; i += LANES)
        maxima = vec_max(scaled_logits(logits + i, vocab_size - i, factor), maxima);
    const float max = vec_reduce_max(maxima);
    double sum = 0.0, mean = 0.0;
    for (long chunk = 0; chunk < ceil_div(vocab_size, CHUNK); chunk++) {
        vec weights = {0}, weighted = {0}, difference;
        for (long i = chunk * CHUNK; i < min_long(vocab_size, (chunk + 1) * CHUNK); i += LANES) {
            vec w = softmax_numerator(scaled_logits(logits + i, vocab_size - i, factor), max, &difference);
            weights += w;
            weighted += w * difference;
        }
        sum += chunk_sums[chunk] = vec_sum(weights);
        mean += vec_sum(weighted);
    }
    *token = find_token(logits, vocab_size, factor, max, chunk_sums, uniform * sum);
    *logprob = (float)((double)(logits[*token] * factor) - max - log(sum));
    *entropy = (float)(log(sum) - mean / sum);
}

/* Of p = softmax(logits * inv_temperature), logits (rows, vocab_size) with this stride: the first token whose cumulative
 * probability exceeds the row's uniform number in [0, 1), its log-probability, and the entropy of p; (rows) each. */
int sample(int num_threads, long rows, long vocab_size, long stride, const float *logits, float inv_temperature,
           const float *uniforms, int64_t *tokens, float *logprobs, float *entropies)
{
    int status = OK;
#pragma omp parallel for schedule(static) num_threads(num_threads) reduction(| : status) if (rows * vocab_size > PARALLEL_SIZE)
    for (long row = 0; row < rows; row++) {
        float *chunk_sums = alloc_floats(ceil_div(vocab_size, CHUNK));
        if (chunk_sums)
            sample_row(logits + row * stride, vocab_size, inv_temperature, uniforms[row], chunk_sums, tokens + row,
                       logprobs + row, entropies + row);
        else
            status = OUT_OF_MEMORY;
        free(chunk_sums);
    }
    return status;
}
