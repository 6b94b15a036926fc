/* Attention of one new token per row to its question's prompt and to the row's own earlier tokens.
 *
 * A task is some rows of one question: their queries to one key head meet the prompt's keys together, as one matrix. */

#include <string.h>

#include "gemm.h"
#include "kernels.h"
#include "simd.h"
#include "softmax.h"

/* out (queries, head_dim) += weights (queries, keys) times values (keys, head_dim), head_dim = vectors * LANES. */
SPECIALIZE void add_values(const int queries, const int vectors, const float *weights, long weight_stride, const float *values,
                       long keys, float *out, long head_dim)
{
    vec sums[8][16];
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int v = 0; v < vectors; v++)
            sums[q][v] = load(out + q * head_dim + v * LANES);
    for (long j = 0; j < keys; j++) {
        vec value[16];
        UNROLL for (int v = 0; v < vectors; v++)
            value[v] = load(values + j * head_dim + v * LANES);
        UNROLL for (int q = 0; q < queries; q++) {
            vec weight = broadcast(weights[q * weight_stride + j]);
            UNROLL for (int v = 0; v < vectors; v++)
                sums[q][v] += weight * value[v];
        }
    }
    UNROLL for (int q = 0; q < queries; q++)
        UNROLL for (int v = 0; v < vectors; v++)
            store(out + q * head_dim + v * LANES, sums[q][v]);
}

/* scores (queries, keys) of queries times keys^T, for 1, 2 or 4 queries.  Keys up to a multiple of LANES are read. */
SPECIALIZE void score_own_keys(const int queries, long head_dim, const float *query, const float *keys, long count,
                               float *scores, long score_stride)
{
    const int step = LANES / queries; /* keys at a time */
    for (long j = 0; j < count; j += step) {
        vec sums[LANES] = {{0}};
        for (long d = 0; d < head_dim; d += LANES)
            UNROLL for (int i = 0; i < step; i++) {
                vec key = load(keys + (j + i) * head_dim + d);
                UNROLL for (int q = 0; q < queries; q++)
                    sums[q * step + i] += key * load(query + q * head_dim + d);
            }
        vec found = vec_sum_16(sums);
        UNROLL for (int q = 0; q < queries; q++)
            memcpy(scores + q * score_stride + j, (const float *)&found + q * step, step * sizeof(float));
    }
}

/* Compiled once for all head_dims. */
#define SCORE_OWN_KEYS(n)                                                                                              \
    static __attribute__((noinline)) void score_own_keys_##n(long head_dim, const float *query, const float *keys,     \
                                                             long count, float *scores, long score_stride)             \
    {                                                                                                                  \
        score_own_keys(n, head_dim, query, keys, count, scores, score_stride);                                         \
    }
SCORE_OWN_KEYS(1)
SCORE_OWN_KEYS(2)
SCORE_OWN_KEYS(4)

/* CALL(n), with q the first of n queries: 4, 2 or 1 at a time, at most `max`, as registers allow. */
#define FOR_QUERIES(count, max, CALL)                                                                                  \
    do {                                                                                                               \
        long q = 0;                                                                                                    \
        if (max >= 4)                                                                                                  \
            for (; q + 4 <= (count); q += 4) { CALL(4); }                                                              \
        if (max >= 2)                                                                                                  \
            for (; q + 2 <= (count); q += 2) { CALL(2); }                                                              \
        for (; q < (count); q++) { CALL(1); }                                                                          \
    } while (0)

/* Where queries, out and lse of a task's row are. */
INLINE long query_row(const decode_attention_args *args, long task, long row)
{
    const long at = args->task_start[task] + row;
    return args->in_order ? at - args->first : args->order[at];
}

/* scores of the prompt's keys (queries, stride). */
INLINE void score_prompt(const decode_attention_args *args, long head_dim, long question, long kv_head, long queries,
                         const float *query, float *scores, long stride)
{
    const long length = args->prompt_lengths[question];
    const float *keys = args->prompt_keys + (question * args->num_kv_heads + kv_head) * head_dim * args->padded_length;
    for (long j = 0; j < length; j += PANEL) {
        const float *panel = keys + j * head_dim;
        if (length - j > PANEL / 2)
            gemm_column(BLOCK_VECTORS, queries, head_dim, query, head_dim, 1, panel, PANEL, scores + j, stride, 0);
        else
            for (long i = 0; i < length - j; i += LANES)
                gemm_column(1, queries, head_dim, query, head_dim, 1, panel + i, PANEL, scores + j + i, stride, 0);
    }
}

/* One block of a row's own keys or values: (block_size, head_dim). */
INLINE const float *own_block(const decode_attention_args *args, const float *const *blocks, long block, long row,
                              long kv_head, long head_dim)
{
    return blocks[block] + (row * args->num_kv_heads + kv_head) * args->block_size * head_dim;
}

SPECIALIZE void attend(const decode_attention_args *args, const int vectors, long task, long kv_head, float *scratch)
{
    const int max_queries = vectors >= 16 ? 1 : vectors >= 8 ? 2 : 4;
    const long head_dim = vectors * LANES, own = args->own_length, group = args->num_heads / args->num_kv_heads;
    const long rows = args->task_count[task], queries = rows * group, question = args->task_question[task];
    const int64_t *order = args->order + args->task_start[task];
    const long own_columns = round_up(own, LANES), stride = args->padded_length + own_columns;
    const long length = args->prompt_lengths[question];
    float *query = scratch, *scores = query + queries * head_dim, *out = scores + queries * stride;
    float *inv_sums = out + queries * head_dim;

    for (long r = 0; r < rows; r++) {
        const float *from = args->queries + (query_row(args, task, r) * args->num_heads + kv_head * group) * head_dim;
        for (long i = 0; i < group * head_dim; i += LANES)
            store(query + r * group * head_dim + i, load(from + i) * args->scale);
    }
    score_prompt(args, head_dim, question, kv_head, queries, query, scores, stride);
    for (long r = 0; r < rows; r++)
        for (long b = 0, done = 0; done < own; b++, done += args->block_size) {
            const float *keys = own_block(args, args->key_blocks, b, order[r], kv_head, head_dim);
            const float *from = query + r * group * head_dim;
            float *to = scores + r * group * stride + args->padded_length + done;
            const long count = min_long(args->block_size, own - done);
#define CALL(n) score_own_keys_##n(head_dim, from + q * head_dim, keys, count, to + q * stride, stride)
            FOR_QUERIES(group, 4, CALL);
#undef CALL
        }
    for (long q = 0; q < queries; q++) {
        float *row = scores + q * stride;
        args->lse[query_row(args, task, q / group) * args->num_heads + kv_head * group + q % group] =
            softmax_numerators(row, length, round_up(length, LANES), row + args->padded_length, own, own_columns,
                               inv_sums + q);
    }
    memset(out, 0, (size_t)(queries * head_dim) * sizeof(float));
    const float *values = args->prompt_values + (question * args->num_kv_heads + kv_head) * args->max_length * head_dim;
    gemm_add(queries, head_dim, length, scores, stride, 1, values, head_dim, out, head_dim);
    for (long r = 0; r < rows; r++) {
        float *to = out + r * group * head_dim;
        for (long b = 0, done = 0; done < own; b++, done += args->block_size) {
            const float *block = own_block(args, args->value_blocks, b, order[r], kv_head, head_dim);
            const float *weights = scores + r * group * stride + args->padded_length + done;
            const long count = min_long(args->block_size, own - done);
#define CALL(n) add_values(n, vectors, weights + q * stride, stride, block, count, to + q * head_dim, head_dim)
            FOR_QUERIES(group, max_queries, CALL);
#undef CALL
        }
        float *found = args->out + (query_row(args, task, r) * args->num_heads + kv_head * group) * head_dim;
        for (long i = 0; i < group * head_dim; i += LANES)
            store(found + i, load(to + i) * inv_sums[r * group + i / head_dim]);
    }
}

/* One task's rows and one key head; `scratch` has `decode_attention_scratch` numbers. */
int decode_attention_task(const decode_attention_args *args, long head_dim, long task, long kv_head, float *scratch)
{
    switch (head_dim) { /* `head_dims` in library_info.c lists them */
    case 16: attend(args, 1, task, kv_head, scratch); return OK;
    case 32: attend(args, 2, task, kv_head, scratch); return OK;
    case 64: attend(args, 4, task, kv_head, scratch); return OK;
    case 128: attend(args, 8, task, kv_head, scratch); return OK;
    case 256: attend(args, 16, task, kv_head, scratch); return OK;
    default: return UNKNOWN_HEAD_DIM;
    }
}

/* Numbers of scratch memory for tasks of at most so many rows. */
long decode_attention_scratch(const decode_attention_args *args, long head_dim, long max_rows)
{
    const long stride = args->padded_length + round_up(args->own_length, LANES);
    return max_rows * (args->num_heads / args->num_kv_heads) * (2 * head_dim + stride + 1);
}

int decode_attention(int num_threads, const decode_attention_args *args, long head_dim)
{
    int status = OK;
    long max_rows = 0;
    for (long task = 0; task < args->num_tasks; task++)
        max_rows = args->task_count[task] > max_rows ? args->task_count[task] : max_rows;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        float *scratch = alloc_floats(decode_attention_scratch(args, head_dim, max_rows));
        if (scratch == NULL)
            status = OUT_OF_MEMORY;
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < args->num_tasks * args->num_kv_heads; i++)
            if (status == OK)
                status = decode_attention_task(args, head_dim, i / args->num_kv_heads, i % args->num_kv_heads, scratch);
        free(scratch);
    }
    return status;
}
