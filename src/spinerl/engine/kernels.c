/* Loops that torch has no single operator for, in float32, for any processor the compiler knows.
 *
 * spinerl.engine.kernels compiles this file on the machine it runs on and is the only caller; it says what each
 * function computes.  A row is computed by one thread from start to end, and sums over rows are made of a fixed number
 * of parts, so that results depend neither on the number of threads nor on their timing.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
typedef float lanes __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef float half_lanes __attribute__((vector_size(32)));
typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
#define UNROLLED _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE lanes load(const float *at) { return *(const loose *)at; }
INLINE void store(float *at, lanes x) { *(loose *)at = x; }
INLINE lanes all(float x) { return (lanes){0} + x; }

INLINE float sum_of(lanes x)
{
    half_lanes a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    half_lanes b = a + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    b += __builtin_shufflevector(b, b, 4, 5, 6, 7, 0, 1, 2, 3);
    b += __builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5);
    return b[0] + b[1];
}

INLINE lanes larger(lanes a, lanes b)
{
    ints mask = a > b;
    return (lanes)(((ints)a & mask) | ((ints)b & ~mask));
}

INLINE float max_of(lanes x)
{
    float most = x[0];
    for (int i = 1; i < LANES; i++)
        most = x[i] > most ? x[i] : most;
    return most;
}

/* exp(x) to 2e-7 of itself, for x up to 88; 0 (or the smallest normal number) under -87. */
INLINE lanes exponential(lanes x)
{
    x = larger(x, all(-87.3f));
    lanes shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    lanes whole = shifted - 12582912.0f;
    lanes rest = x - whole * 0.693359375f;
    rest = rest - whole * -2.12194440e-4f;
    lanes value = all(1.9875691500e-4f);
    value = value * rest + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = value * rest * rest + rest + 1.0f;
    ints power = __builtin_convertvector(whole, ints) + 127;
    return value * (lanes)(power << 23);
}

INLINE lanes sigmoid(lanes x) { return 1.0f / (1.0f + exponential(larger(-x, all(-87.0f)))); }

/* ---- norms: y = w * x / sqrt(mean(x^2) + eps) for rows of `width` numbers ---- */

INLINE float inverse_root(const float *x, long width, float eps)
{
    lanes squares = {0};
    long i = 0;
    for (; i + LANES <= width; i += LANES)
        squares += load(x + i) * load(x + i);
    float total = sum_of(squares);
    for (; i < width; i++)
        total += x[i] * x[i];
    return 1.0f / sqrtf(total / (float)width + eps);
}

void norm_forward(long rows, long width, const float *x, const float *w, float eps, float *y, float *inverse)
{
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * width;
        float *to = y + row * width;
        float scale = inverse_root(from, width, eps);
        if (inverse)
            inverse[row] = scale;
        long i = 0;
        for (; i + LANES <= width; i += LANES)
            store(to + i, load(w + i) * (load(from + i) * scale));
        for (; i < width; i++)
            to[i] = w[i] * (from[i] * scale);
    }
}

/* by_x of each row; by_w as `parts` sums over rows, (parts, width), which the caller has set to 0 and adds up. */
void norm_backward(long rows, long width, const float *x, const float *w, const float *inverse, const float *slope,
                   float *by_x, float *by_w, long parts)
{
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long part = 0; part < parts; part++) {
        float *sums = by_w + part * width;
        for (long row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
            const float *from = x + row * width, *g = slope + row * width;
            float *to = by_x + row * width;
            float scale = inverse[row];
            lanes dots = {0};
            long i = 0;
            for (; i + LANES <= width; i += LANES) {
                lanes product = load(g + i) * load(from + i);
                dots += product * load(w + i);
                store(sums + i, load(sums + i) + product * scale);
            }
            float dot = sum_of(dots);
            for (; i < width; i++) {
                dot += g[i] * from[i] * w[i];
                sums[i] += g[i] * from[i] * scale;
            }
            float back = dot * scale * scale * scale / (float)width;
            for (i = 0; i + LANES <= width; i += LANES)
                store(to + i, load(g + i) * load(w + i) * scale - load(from + i) * back);
            for (; i < width; i++)
                to[i] = g[i] * w[i] * scale - from[i] * back;
        }
    }
}

/* ---- gates: y = silu(gate) * up ---- */

INLINE void copy_in(float *to, const float *from, long count) { memcpy(to, from, (size_t)count * sizeof(float)); }

void gate_forward(long size, const float *gate, const float *up, float *y)
{
    long blocks = (size + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long block = 0; block < blocks; block++) {
        long i = block * LANES, count = size - i < LANES ? size - i : LANES;
        if (count == LANES) {
            lanes g = load(gate + i);
            store(y + i, g * sigmoid(g) * load(up + i));
        } else {
            float a[LANES] = {0}, b[LANES] = {0}, c[LANES];
            copy_in(a, gate + i, count);
            copy_in(b, up + i, count);
            store(c, load(a) * sigmoid(load(a)) * load(b));
            copy_in(y + i, c, count);
        }
    }
}

INLINE void gate_slopes(const float *gate, const float *up, const float *slope, float *by_gate, float *by_up)
{
    lanes g = load(gate), u = load(up), d = load(slope), s = sigmoid(g);
    store(by_up, d * g * s);
    store(by_gate, d * u * s * (1.0f + g * (1.0f - s)));
}

void gate_backward(long size, const float *gate, const float *up, const float *slope, float *by_gate, float *by_up)
{
    long blocks = (size + LANES - 1) / LANES;
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long block = 0; block < blocks; block++) {
        long i = block * LANES, count = size - i < LANES ? size - i : LANES;
        if (count == LANES) {
            gate_slopes(gate + i, up + i, slope + i, by_gate + i, by_up + i);
        } else {
            float in[3][LANES] = {{0}}, out[2][LANES];
            copy_in(in[0], gate + i, count);
            copy_in(in[1], up + i, count);
            copy_in(in[2], slope + i, count);
            gate_slopes(in[0], in[1], in[2], out[0], out[1]);
            copy_in(by_gate + i, out[0], count);
            copy_in(by_up + i, out[1], count);
        }
    }
}

/* ---- rotations: halves (a, b) of each head to (a cos - b sin, b cos + a sin), or the transpose of that ---- */

void rotate(long tokens, long heads, long width, const float *x, const float *cosine, const float *sine, int back,
            float *y)
{
    long half = width / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * width > 16384)
    for (long token = 0; token < tokens; token++) {
        const float *c = cosine + token * width, *s = sine + token * width;
        for (long head = 0; head < heads; head++) {
            const float *a = x + (token * heads + head) * width, *b = a + half;
            float *to = y + (token * heads + head) * width;
            long i = 0;
            for (; i + LANES <= half; i += LANES) {
                lanes p = load(a + i), q = load(b + i);
                if (back) {
                    store(to + i, p * load(c + i) + q * load(s + half + i));
                    store(to + half + i, q * load(c + half + i) - p * load(s + i));
                } else {
                    store(to + i, p * load(c + i) - q * load(s + i));
                    store(to + half + i, q * load(c + half + i) + p * load(s + half + i));
                }
            }
            for (; i < half; i++) {
                float p = a[i], q = b[i];
                to[i] = back ? p * c[i] + q * s[half + i] : p * c[i] - q * s[i];
                to[half + i] = back ? q * c[half + i] - p * s[i] : q * c[half + i] + p * s[half + i];
            }
        }
    }
}

/* ---- attention of one new token per row: to its question's prompt and to the row's own earlier tokens ---- */

/* scores (N queries, 32 keys from `keys` on) of queries that lie `width` apart; keys lie transposed, `stride` apart. */
INLINE void score_prompt(const int n, const float *queries, long width, const float *keys, long stride, float *scores,
                         long score_stride)
{
    lanes sums[8][2] = {{{0}}};
    for (long d = 0; d < width; d++) {
        lanes first = load(keys + d * stride), second = load(keys + d * stride + LANES);
        UNROLLED for (int q = 0; q < n; q++) {
            lanes one = all(queries[q * width + d]);
            sums[q][0] += one * first;
            sums[q][1] += one * second;
        }
    }
    UNROLLED for (int q = 0; q < n; q++) {
        store(scores + q * score_stride, sums[q][0]);
        store(scores + q * score_stride + LANES, sums[q][1]);
    }
}

/* adds weights (N queries, keys) times values (keys, parts * 16) to outputs, which lie `width` apart. */
INLINE void add_values(const int n, const int parts, const float *weights, long weight_stride, const float *values,
                       long keys, float *outputs, long width)
{
    lanes sums[8][16];
    UNROLLED for (int q = 0; q < n; q++)
        UNROLLED for (int p = 0; p < parts; p++)
            sums[q][p] = load(outputs + q * width + p * LANES);
    for (long j = 0; j < keys; j++) {
        lanes value[16];
        UNROLLED for (int p = 0; p < parts; p++)
            value[p] = load(values + j * width + p * LANES);
        UNROLLED for (int q = 0; q < n; q++) {
            lanes one = all(weights[q * weight_stride + j]);
            UNROLLED for (int p = 0; p < parts; p++)
                sums[q][p] += one * value[p];
        }
    }
    UNROLLED for (int q = 0; q < n; q++)
        UNROLLED for (int p = 0; p < parts; p++)
            store(outputs + q * width + p * LANES, sums[q][p]);
}

/* scores (N queries, keys) of keys (keys, parts * 16) one after the other. */
INLINE void score_own(const int n, const int parts, const float *queries, const float *keys, long count, float *scores,
                      long score_stride)
{
    const long width = parts * LANES;
    for (long j = 0; j < count; j++) {
        lanes sums[8] = {{0}};
        UNROLLED for (int p = 0; p < parts; p++) {
            lanes key = load(keys + j * width + p * LANES);
            UNROLLED for (int q = 0; q < n; q++)
                sums[q] += key * load(queries + q * width + p * LANES);
        }
        UNROLLED for (int q = 0; q < n; q++)
            scores[q * score_stride + j] = sum_of(sums[q]);
    }
}

/* In lots of 4, 2 and 1 queries, as registers allow. */
#define IN_LOTS(count, most, call)                                                                                     \
    do {                                                                                                               \
        long q = 0;                                                                                                    \
        if (most >= 8)                                                                                                 \
            for (; q + 8 <= (count); q += 8) { call(8); }                                                              \
        if (most >= 4)                                                                                                 \
            for (; q + 4 <= (count); q += 4) { call(4); }                                                              \
        if (most >= 2)                                                                                                 \
            for (; q + 2 <= (count); q += 2) { call(2); }                                                              \
        for (; q < (count); q++) { call(1); }                                                                          \
    } while (0)

typedef struct {
    long rows, heads, kv_heads;         /* queries (rows, heads, width) */
    const float *queries;
    float scale;
    long blocks, block_size, own;       /* the rows' own tokens: so many, in blocks of (rows, kv_heads, block_size, width) */
    const float *const *key_blocks, *const *value_blocks;
    const float *prompt_keys;           /* (questions, kv_heads, width, padded), transposed */
    const float *prompt_values;         /* (questions, kv_heads, longest, width) */
    long padded, longest;               /* padded: a multiple of 32 */
    const int64_t *lengths;             /* (questions) of the prompts */
    long tasks;                         /* a task: some rows of one question, for one head of keys */
    const int64_t *question, *first, *count; /* (tasks) rows order[first] to order[first + count - 1] */
    const int64_t *order;               /* (rows) */
    float *outputs, *totals;            /* (rows, heads, width), (rows, heads): logarithm of the weights' sum */
} decoding;

INLINE void decode_task(const decoding *job, const int parts, long task, long head, float *scratch)
{
    const int most = parts >= 16 ? 1 : parts >= 8 ? 2 : parts >= 4 ? 4 : 8;
    const long width = parts * LANES, own = job->own, group = job->heads / job->kv_heads;
    const long rows = job->count[task], queries = rows * group, question = job->question[task];
    const int64_t *order = job->order + job->first[task];
    const long own_padded = (own + LANES - 1) / LANES * LANES, stride = job->padded + own_padded;
    const long length = job->lengths[question];
    float *query = scratch, *scores = query + queries * width, *output = scores + queries * stride;
    const lanes nothing = all(-1e30f);

    for (long r = 0; r < rows; r++)
        for (long i = 0; i < group * width; i += LANES)
            store(query + r * group * width + i,
                  load(job->queries + (order[r] * job->heads + head * group) * width + i) * job->scale);
    const float *keys = job->prompt_keys + (question * job->kv_heads + head) * width * job->padded;
    for (long j = 0; j < length; j += 2 * LANES) {
#define CALL(n) score_prompt(n, query + q * width, width, keys + j, job->padded, scores + q * stride + j, stride)
        IN_LOTS(queries, 8, CALL);
#undef CALL
    }
    for (long r = 0; r < rows; r++) {
        float *to = scores + r * group * stride + job->padded;
        const float *from = query + r * group * width;
        for (long b = 0, done = 0; done < own; b++, done += job->block_size) {
            long count = own - done < job->block_size ? own - done : job->block_size;
            const float *block = job->key_blocks[b] + (order[r] * job->kv_heads + head) * job->block_size * width;
#define CALL(n) score_own(n, parts, from + q * width, block, count, to + q * stride + done, stride)
            IN_LOTS(group, 4, CALL);
#undef CALL
        }
    }
    long columns = (length + LANES - 1) / LANES * LANES;
    for (long q = 0; q < queries; q++) {
        float *row = scores + q * stride, *its_own = row + job->padded;
        for (long j = length; j < columns; j++)
            row[j] = -1e30f;
        for (long j = own; j < own_padded; j++)
            its_own[j] = -1e30f;
        lanes top = nothing;
        for (long j = 0; j < columns; j += LANES)
            top = larger(load(row + j), top);
        for (long j = 0; j < own_padded; j += LANES)
            top = larger(load(its_own + j), top);
        float highest = max_of(top);
        lanes sums = {0};
        for (long j = 0; j < columns; j += LANES) {
            lanes weight = exponential(load(row + j) - highest);
            sums += weight;
            store(row + j, weight);
        }
        for (long j = 0; j < own_padded; j += LANES) {
            lanes weight = exponential(load(its_own + j) - highest);
            sums += weight;
            store(its_own + j, weight);
        }
        float sum = sum_of(sums);
        long to = order[q / group] * job->heads + head * group + q % group;
        if (job->totals)
            job->totals[to] = highest + logf(sum);
        sums = all(1.0f / sum);
        for (long j = 0; j < columns; j += LANES)
            store(row + j, load(row + j) * sums);
        for (long j = 0; j < own_padded; j += LANES)
            store(its_own + j, load(its_own + j) * sums);
    }
    memset(output, 0, (size_t)(queries * width) * sizeof(float));
    const float *values = job->prompt_values + (question * job->kv_heads + head) * job->longest * width;
#define CALL(n) add_values(n, parts, scores + q * stride, stride, values, length, output + q * width, width)
    IN_LOTS(queries, most, CALL);
#undef CALL
    for (long r = 0; r < rows; r++) {
        const float *weights = scores + r * group * stride + job->padded;
        float *to = output + r * group * width;
        for (long b = 0, done = 0; done < own; b++, done += job->block_size) {
            long count = own - done < job->block_size ? own - done : job->block_size;
            const float *block = job->value_blocks[b] + (order[r] * job->kv_heads + head) * job->block_size * width;
#define CALL(n) add_values(n, parts, weights + q * stride + done, stride, block, count, to + q * width, width)
            IN_LOTS(group, most, CALL);
#undef CALL
        }
        memcpy(job->outputs + (order[r] * job->heads + head * group) * width, to,
               (size_t)(group * width) * sizeof(float));
    }
}

/* Returns 0, or 1 where the width is not one it knows or memory is short. */
int decode_attention(const decoding *job, long width, long most_rows)
{
    int failed = 0;
    const long group = job->heads / job->kv_heads, queries = most_rows * group;
    const long stride = job->padded + (job->own + LANES - 1) / LANES * LANES;
    const size_t size = (size_t)(queries * (2 * width + stride)) * sizeof(float);
    if (width != 16 && width != 32 && width != 64 && width != 128 && width != 256)
        return 1;
#pragma omp parallel reduction(| : failed)
    {
        float *scratch = aligned_alloc(64, (size + 63) / 64 * 64);
        failed = scratch == NULL;
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < job->tasks * job->kv_heads; i++) {
            long task = i / job->kv_heads, head = i % job->kv_heads;
            if (failed)
                continue;
            switch (width) {
            case 16: decode_task(job, 1, task, head, scratch); break;
            case 32: decode_task(job, 2, task, head, scratch); break;
            case 64: decode_task(job, 4, task, head, scratch); break;
            case 128: decode_task(job, 8, task, head, scratch); break;
            case 256: decode_task(job, 16, task, head, scratch); break;
            }
        }
        free(scratch);
    }
    return failed;
}
