/* Causal attention of rows of tokens (responses) to their question's prompt and to themselves, and its gradients.
 *
 * One thread takes some neighboring rows of one question (a task) and one key head, and for these one row after the other,
 * in tiles of TILE queries and, backward, TILE keys. */

#include <string.h>

#include "gemm.h"
#include "kernels.h"
#include "simd.h"
#include "softmax.h"

/* What one thread works with.  A query is a token and one of the `group` query heads that share the key head. */
typedef struct {
    float *queries, *dout, *dqueries, *out;           /* (queries, head_dim) */
    float *lse, *factors;                             /* (queries): 1 / sum of weights; backward sum(dout * out) */
    float *prompt_keys_t, *prompt_values_t;           /* (head_dim, prompt stride): transposed */
    float *own_keys_t, *own_values_t;                 /* (head_dim, own stride) */
    float *own_dkeys, *own_dvalues;                   /* (own stride, head_dim) */
    float *weights, *dscores;                         /* (TILE, all keys), or (TILE, TILE) twice */
    long *active;                                     /* (tokens) backward: those whose dout is not 0 */
    float *memory;
} workspace;

/* One row and key head: the sizes and places that forward and backward need. */
typedef struct {
    long group, head_dim, tokens, start, prompt_length, prompt_stride, own_stride;
    long query_at, key_at;                            /* of the first token's first query, and key, in the arguments */
    long query_stride, key_stride;                    /* between tokens there */
    const float *prompt_keys, *prompt_values;
} row_view;

static row_view view_row(const extend_attention_args *args, long row, long question, long kv_head)
{
    const long head_dim = args->head_dim, group = args->num_heads / args->num_kv_heads, start = args->row_starts[row];
    const long tokens = args->row_starts[row + 1] - start;
    const long prompt_at = question * args->question_stride + kv_head * args->head_stride;
    return (row_view){
        .group = group,
        .head_dim = head_dim,
        .tokens = tokens,
        .start = start,
        .prompt_length = args->prompt_lengths[question],
        .prompt_stride = round_up(args->max_length, TILE),
        .own_stride = round_up(tokens, TILE),
        .query_at = (start * args->num_heads + kv_head * group) * head_dim,
        .key_at = (start * args->num_kv_heads + kv_head) * head_dim,
        .query_stride = args->num_heads * head_dim,
        .key_stride = args->num_kv_heads * head_dim,
        .prompt_keys = args->max_length ? args->prompt_keys + prompt_at : NULL,
        .prompt_values = args->max_length ? args->prompt_values + prompt_at : NULL,
    };
}

/* out (head_dim, out_stride) = inp (count, head_dim), transposed; 0 beyond `count`. */
static void transpose(const float *inp, long stride, long count, long head_dim, float *out, long out_stride)
{
    for (long d = 0; d < head_dim; d++) {
        long i = 0;
        for (; i < count; i++)
            out[d * out_stride + i] = inp[i * stride + d];
        for (; i < out_stride; i++)
            out[d * out_stride + i] = 0.0f;
    }
}

/* out (tokens, size) = the tokens `active`, or the first ones if that is NULL, of inp, times a factor. */
static void gather(const float *inp, const long *active, long tokens, long stride, long size, float factor, float *out)
{
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < size; i += LANES)
            store(out + t * size + i, load(inp + (active ? active[t] : t) * stride + i) * factor);
}

/* The reverse. */
static void scatter(const float *inp, const long *active, long tokens, long stride, long size, float factor, float *out)
{
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < size; i += LANES)
            store(out + (active ? active[t] : t) * stride + i, load(inp + t * size + i) * factor);
}

/* The tokens whose dout (tokens, size) is not all 0, in order; returns their number. */
static long find_active(const float *dout, long tokens, long stride, long size, long *active)
{
    long count = 0;
    for (long t = 0; t < tokens; t++) {
        vec_int nonzero = {0};
        for (long i = 0; i < size; i += LANES)
            nonzero |= load(dout + t * stride + i) != (vec){0};
        int any = 0;
        for (int i = 0; i < LANES; i++)
            any |= nonzero[i];
        active[count] = t;
        count += any != 0;
    }
    return count;
}

static float *take(float **memory, long count)
{
    float *start = *memory;
    *memory += round_up(count, LANES);
    return start;
}

/* memory is NULL where there is none. */
static workspace make_workspace(const extend_attention_args *args)
{
    const long tokens = args->max_row_length, queries = tokens * (args->num_heads / args->num_kv_heads);
    const long own = round_up(tokens, TILE), prompt = round_up(args->max_length, TILE), head_dim = args->head_dim;
    const long size = queries * (4 * head_dim + 2) + head_dim * (4 * own + 2 * prompt) + TILE * (own + prompt + TILE) +
                      2 * tokens + 15 * LANES;
    workspace w = {.memory = alloc_floats(size)};
    float *memory = w.memory;
    if (memory == NULL)
        return w;
    w.queries = take(&memory, queries * head_dim);
    w.dout = take(&memory, queries * head_dim);
    w.dqueries = take(&memory, queries * head_dim);
    w.out = take(&memory, queries * head_dim);
    w.lse = take(&memory, queries);
    w.factors = take(&memory, queries);
    w.prompt_keys_t = take(&memory, head_dim * prompt);
    w.prompt_values_t = take(&memory, head_dim * prompt);
    w.own_keys_t = take(&memory, head_dim * own);
    w.own_values_t = take(&memory, head_dim * own);
    w.own_dkeys = take(&memory, head_dim * own);
    w.own_dvalues = take(&memory, head_dim * own);
    w.weights = take(&memory, TILE * (own + prompt));
    w.dscores = take(&memory, TILE * TILE);
    w.active = (long *)take(&memory, 2 * tokens);
    return w;
}

static void attend_row(const extend_attention_args *args, const row_view r, long kv_head, const workspace w)
{
    const long group = r.group, head_dim = r.head_dim, stride = r.prompt_stride + r.own_stride;
    const float *own_values = args->values + r.key_at;
    gather(args->queries + r.query_at, NULL, r.tokens, r.query_stride, group * head_dim, args->scale, w.queries);
    transpose(args->keys + r.key_at, r.key_stride, r.tokens, head_dim, w.own_keys_t, r.own_stride);
    for (long m = 0; m < r.tokens * group; m += TILE) {
        const long count = min_long(TILE, r.tokens * group - m), own_length = (m + count - 1) / group + 1;
        const long columns = round_up(r.prompt_length, LANES), own_columns = round_up(own_length, LANES);
        float *query = w.queries + m * head_dim, *out = w.out + m * head_dim, *own_weights = w.weights + r.prompt_stride;
        gemm(count, columns, head_dim, query, head_dim, 1, w.prompt_keys_t, r.prompt_stride, w.weights, stride);
        gemm(count, own_columns, head_dim, query, head_dim, 1, w.own_keys_t, r.own_stride, own_weights, stride);
        for (long q = 0; q < count; q++) {
            const long token = (m + q) / group, head = kv_head * group + (m + q) % group;
            args->lse[(r.start + token) * args->num_heads + head] =
                softmax_numerators(w.weights + q * stride, r.prompt_length, columns, own_weights + q * stride, token + 1,
                                   own_columns, w.factors + m + q);
        }
        gemm(count, head_dim, r.prompt_length, w.weights, stride, 1, r.prompt_values, args->token_stride, out, head_dim);
        gemm_add(count, head_dim, own_length, own_weights, stride, 1, own_values, r.key_stride, out, head_dim);
        for (long q = 0; q < count; q++)
            for (long d = 0; d < head_dim; d += LANES)
                store(out + q * head_dim + d, load(out + q * head_dim + d) * w.factors[m + q]);
    }
    scatter(w.out, NULL, r.tokens, r.query_stride, group * head_dim, 1.0f, args->out + r.query_at);
}

/* A list of keys and their gradients, for one tile. */
typedef struct {
    const float *keys_t, *values_t;                   /* (head_dim, stride_t) */
    long stride_t;
    const float *keys;                                /* (keys, head_dim) with stride */
    long stride;
    float *dkeys, *dvalues;                           /* (keys, head_dim) */
    long first_token;                                 /* of the first key; -1: every query sees all keys */
} key_tile;

/* `count` queries from query m on, and the first n keys of a tile: with p = exp(scores - lse), the gradient of the scores
 * is p * (dout values^T - sum(dout * out)). */
static void tile_backward(const row_view r, const workspace w, long m, long count, long n, const key_tile tile)
{
    const long head_dim = r.head_dim, columns = round_up(n, LANES);
    const float *query = w.queries + m * head_dim, *dout = w.dout + m * head_dim;
    gemm(count, columns, head_dim, query, head_dim, 1, tile.keys_t, tile.stride_t, w.weights, TILE);
    gemm(count, columns, head_dim, dout, head_dim, 1, tile.values_t, tile.stride_t, w.dscores, TILE);
    for (long q = 0; q < count; q++) {
        vec lse = broadcast(w.lse[m + q]), dot = broadcast(w.factors[m + q]);
        float *weights = w.weights + q * TILE, *dscores = w.dscores + q * TILE;
        for (long j = 0; j < columns; j += LANES) {
            vec p = vec_exp(load(weights + j) - lse);
            store(weights + j, p);
            store(dscores + j, p * (load(dscores + j) - dot));
        }
        const long seen = tile.first_token < 0 ? n : min_long(n, w.active[(m + q) / r.group] - tile.first_token + 1);
        for (long j = seen; j < columns; j++)
            weights[j] = dscores[j] = 0.0f;
    }
    gemm_add(count, head_dim, n, w.dscores, TILE, 1, tile.keys, tile.stride, w.dqueries + m * head_dim, head_dim);
    gemm_add(n, head_dim, count, w.dscores, 1, TILE, query, head_dim, tile.dkeys, head_dim);
    gemm_add(n, head_dim, count, w.weights, 1, TILE, dout, head_dim, tile.dvalues, head_dim);
}

/* The row's active queries, their lse and sum(dout * out), its keys and values transposed, gradients of 0; returns the
 * number of active tokens. */
static long prepare_backward(const extend_attention_args *args, const row_view r, long kv_head, const workspace w)
{
    const long group = r.group, head_dim = r.head_dim, size = group * head_dim;
    const long active = find_active(args->dout + r.query_at, r.tokens, r.query_stride, size, w.active);
    gather(args->queries + r.query_at, w.active, active, r.query_stride, size, args->scale, w.queries);
    gather(args->dout + r.query_at, w.active, active, r.query_stride, size, 1.0f, w.dout);
    gather(args->out + r.query_at, w.active, active, r.query_stride, size, 1.0f, w.out);
    for (long q = 0; q < active * group; q++) {
        vec dots = {0};
        for (long d = 0; d < head_dim; d += LANES)
            dots += load(w.dout + q * head_dim + d) * load(w.out + q * head_dim + d);
        w.factors[q] = vec_sum(dots);
        w.lse[q] = args->lse[(r.start + w.active[q / group]) * args->num_heads + kv_head * group + q % group];
    }
    memset(w.dqueries, 0, (size_t)(active * size) * sizeof(float));
    transpose(args->keys + r.key_at, r.key_stride, r.tokens, head_dim, w.own_keys_t, r.own_stride);
    transpose(args->values + r.key_at, r.key_stride, r.tokens, head_dim, w.own_values_t, r.own_stride);
    memset(w.own_dkeys, 0, (size_t)(r.own_stride * head_dim) * sizeof(float));
    memset(w.own_dvalues, 0, (size_t)(r.own_stride * head_dim) * sizeof(float));
    return active;
}

/* dprompt (2, prompt stride, head_dim): += the gradients of the prompt's keys and values. */
static void attend_row_backward(const extend_attention_args *args, const row_view r, long kv_head, const workspace w,
                                float *dprompt)
{
    const long group = r.group, head_dim = r.head_dim;
    const long active = prepare_backward(args, r, kv_head, w), queries = active * group;
    for (long j = 0; j < r.prompt_length; j += TILE) {
        const key_tile tile = {
            w.prompt_keys_t + j, w.prompt_values_t + j, r.prompt_stride, r.prompt_keys + j * args->token_stride,
            args->token_stride, dprompt + j * head_dim, dprompt + (r.prompt_stride + j) * head_dim, -1};
        for (long m = 0; m < queries; m += TILE)
            tile_backward(r, w, m, min_long(TILE, queries - m), min_long(TILE, r.prompt_length - j), tile);
    }
    long first = 0;
    for (long j = 0; j < r.tokens; j += TILE) {
        const key_tile tile = {w.own_keys_t + j, w.own_values_t + j, r.own_stride,
                               args->keys + r.key_at + j * r.key_stride, r.key_stride, w.own_dkeys + j * head_dim,
                               w.own_dvalues + j * head_dim, j};
        while (first < active && w.active[first] < j) /* earlier tokens do not see this tile's keys */
            first++;
        for (long m = first * group; m < queries; m += TILE) {
            const long count = min_long(TILE, queries - m), seen = w.active[(m + count - 1) / group] - j + 1;
            tile_backward(r, w, m, count, min_long(TILE, seen), tile);
        }
    }
    if (active < r.tokens)
        for (long t = 0; t < r.tokens; t++)
            memset(args->dqueries + r.query_at + t * r.query_stride, 0, (size_t)(group * head_dim) * sizeof(float));
    scatter(w.dqueries, w.active, active, r.query_stride, group * head_dim, args->scale, args->dqueries + r.query_at);
    scatter(w.own_dkeys, NULL, r.tokens, r.key_stride, head_dim, 1.0f, args->dkeys + r.key_at);
    scatter(w.own_dvalues, NULL, r.tokens, r.key_stride, head_dim, 1.0f, args->dvalues + r.key_at);
}

/* One task and key head. */
static void attend_task(const extend_attention_args *args, long task, long kv_head, int backward, const workspace w)
{
    const long question = args->task_question[task], prompt_stride = round_up(args->max_length, TILE);
    const long first = args->task_start[task], end = first + args->task_count[task];
    const long size = 2 * prompt_stride * args->head_dim;
    float *dprompt = size ? args->partial_sums + (task * args->num_kv_heads + kv_head) * size : NULL;
    if (size) {
        const row_view r = view_row(args, first, question, kv_head);
        transpose(r.prompt_keys, args->token_stride, r.prompt_length, r.head_dim, w.prompt_keys_t, prompt_stride);
        if (backward) {
            transpose(r.prompt_values, args->token_stride, r.prompt_length, r.head_dim, w.prompt_values_t, prompt_stride);
            memset(dprompt, 0, (size_t)size * sizeof(float));
        }
    }
    for (long row = first; row < end; row++) {
        const row_view r = view_row(args, row, question, kv_head);
        if (backward)
            attend_row_backward(args, r, kv_head, w, dprompt);
        else
            attend_row(args, r, kv_head, w);
    }
}

/* The gradients of one question's prompt and key head: the sums over its tasks. */
static void sum_parts(const extend_attention_args *args, long question, long kv_head)
{
    const long size = args->max_length * args->head_dim, part_size = round_up(args->max_length, TILE) * args->head_dim;
    float *dkeys = args->dprompt_keys + (question * args->num_kv_heads + kv_head) * size;
    float *dvalues = args->dprompt_values + (question * args->num_kv_heads + kv_head) * size;
    memset(dkeys, 0, (size_t)size * sizeof(float));
    memset(dvalues, 0, (size_t)size * sizeof(float));
    for (long task = 0; task < args->num_tasks; task++) {
        if (args->task_question[task] != question)
            continue;
        const float *part = args->partial_sums + (task * args->num_kv_heads + kv_head) * 2 * part_size;
        for (long i = 0; i < size; i += LANES) {
            store(dkeys + i, load(dkeys + i) + load(part + i));
            store(dvalues + i, load(dvalues + i) + load(part + part_size + i));
        }
    }
}

static int attend_all(int num_threads, const extend_attention_args *args, int backward)
{
    if (args->head_dim % LANES || args->num_heads % args->num_kv_heads)
        return UNKNOWN_SIZE;
    int status = OK;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        const workspace w = make_workspace(args);
        if (w.memory == NULL)
            status = OUT_OF_MEMORY;
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < args->num_tasks * args->num_kv_heads; i++)
            if (status == OK)
                attend_task(args, i / args->num_kv_heads, i % args->num_kv_heads, backward, w);
        free(w.memory);
        if (backward && args->max_length) {
#pragma omp for schedule(static)
            for (long i = 0; i < args->num_questions * args->num_kv_heads; i++)
                sum_parts(args, i / args->num_kv_heads, i % args->num_kv_heads);
        }
    }
    return status;
}

/* out and lse. */
int extend_attention_forward(int num_threads, const extend_attention_args *args) { return attend_all(num_threads, args, 0); }

/* dqueries, dkeys, dvalues, dprompt_keys, dprompt_values, from dout, out and lse. */
int extend_attention_backward(int num_threads, const extend_attention_args *args) { return attend_all(num_threads, args, 1); }
