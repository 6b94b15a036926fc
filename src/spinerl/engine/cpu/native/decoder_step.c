/* One new token per row through all layers of a decoder, the last norm and the head.
 *
 * A thread takes some rows from the first layer to the last, as no row depends on another: its activations stay in its
 * caches, and threads meet only at the end. */

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "amx.h"
#include "gemm.h"
#include "kernels.h"
#include "rms_norm.h"
#include "rope.h"
#include "simd.h"
#include "swiglu.h"

enum { SAVED_Q, SAVED_K, SAVED_V, SAVED_O, SAVED_GATE, SAVED_UP, SAVED_DOWN, SAVED_ATTENTION, SAVED_LSE };
_Static_assert(SAVED_LSE + 1 == NUM_SAVED, "one for each");

/* What one thread works with; strides are sizes rounded up to whole panels. */
typedef struct {
    float *hidden_states, *normed;                    /* (rows, hidden_size) */
    float *qkv;                                       /* (rows, qkv_stride) */
    float *queries, *attention;                       /* (rows, heads, head_dim): queries after RoPE; attention's output */
    float *lse;                                       /* (rows, heads) */
    float *out;                                       /* (rows, hidden_stride) of o_proj, of down_proj, and logits */
    float *gate_up;                                   /* (rows, 2, intermediate_stride) */
    float *swiglu;                                    /* (rows, intermediate_size) */
    float *scratch;                                   /* of attention */
    float *rounded;                                   /* inputs of a matmul in bfloat16, where that is asked for */
    float *memory;
} workspace;

/* One thread's rows: order[0], ..., order[rows - 1], which are the tasks first_task, ..., end_task - 1. */
typedef struct {
    const decoder_step_args *model;
    decode_attention_args attention;
    long head_dim, first_task, end_task, rows;
    const int64_t *order;
    long q_size, kv_size, qkv_stride, hidden_stride, intermediate_stride;
    workspace w;
} slice;

/* memory is NULL where there is none. */
static workspace make_workspace(const slice *s)
{
    enum { PIECES = 11 };
    const long rows = s->rows, heads = s->attention.num_heads;
    long max_rows = 0;
    for (long task = s->first_task; task < s->end_task; task++)
        max_rows = s->attention.task_count[task] > max_rows ? s->attention.task_count[task] : max_rows;
    long inputs = s->model->hidden_size > s->q_size ? s->model->hidden_size : s->q_size;
    inputs = s->model->intermediate_size > inputs ? s->model->intermediate_size : inputs;
    const long sizes[PIECES] = {
        rows * s->model->hidden_size,
        rows * s->model->hidden_size,
        rows * s->qkv_stride,
        rows * s->q_size,
        rows * s->q_size,
        rows * heads,
        rows * s->hidden_stride,
        rows * 2 * s->intermediate_stride,
        rows * s->model->intermediate_size,
        decode_attention_scratch(&s->attention, s->head_dim, max_rows),
        s->model->bf16 ? round_up(rows, AMX_ROWS) * round_up(inputs, AMX_DEPTH) / 2 : 0,
    };
    long size = 0;
    for (int i = 0; i < PIECES; i++)
        size += round_up(sizes[i], LANES);
    float *memory = alloc_floats(size), *pieces[PIECES];
    if (memory == NULL)
        return (workspace){0};
    size = 0;
    for (int i = 0; i < PIECES; i++) {
        pieces[i] = memory + size;
        size += round_up(sizes[i], LANES);
    }
    return (workspace){pieces[0], pieces[1], pieces[2], pieces[3], pieces[4], pieces[5],
                       pieces[6], pieces[7], pieces[8], pieces[9], pieces[10], memory};
}

/* `linear` without bias; the inputs are rounded already where they have to be (`round_inputs`). */
static void matmul(const slice *s, long n, long k, const float *inp, const float *weight, float *out)
{
    const long rows = s->rows, stride = round_up(n, PANEL);
    if (s->model->bf16)
        amx_gemm(rows, stride, k, (const uint16_t *)s->w.rounded, (const uint16_t *)weight, out, stride, 0);
    else
        for (long p = 0; p < stride; p += PANEL)
            gemm_column(BLOCK_VECTORS, rows, k, inp, k, 1, weight + p * k, PANEL, out + p, stride, 0);
}

static void round_inputs(const slice *s, long k, const float *inp)
{
    if (s->model->bf16)
        amx_round(s->rows, k, inp, k, (uint16_t *)s->w.rounded);
}

/* out (rows, n rounded up to panels) = inp (rows, k) weight^T + bias; weight packed, bias padded to panels or NULL. */
static void linear(const slice *s, long n, long k, const float *inp, const float *weight, const float *bias, float *out)
{
    const long stride = round_up(n, PANEL);
    round_inputs(s, k, inp);
    matmul(s, n, k, inp, weight, out);
    if (bias)
        for (long row = 0; row < s->rows; row++)
            for (long i = 0; i < stride; i += LANES)
                store(out + row * stride + i, load(out + row * stride + i) + load(bias + i));
}

static void rms_norm_rows(long rows, long size, const float *inp, const float *weight, float eps, float *out)
{
    for (long row = 0; row < rows; row++)
        rms_norm_row(size, inp + row * size, NULL, weight, eps, out + row * size);
}

/* out (rows, size) += inp (rows, size) with this stride. */
static void add_rows(long rows, long size, const float *inp, long stride, float *out)
{
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < size; i++)
            out[row * size + i] += inp[row * stride + i];
}

/* The rows of inp (rows, size), with this stride, into their slots; nothing if out is NULL. */
static void save(const slice *s, float *out, long size, const float *inp, long stride)
{
    if (out)
        for (long row = 0; row < s->rows; row++)
            copy_floats(out + (s->model->slot + s->order[row]) * size, inp + row * stride, size);
}

/* RMSNorm and RoPE of queries and keys; keys and values go to the end of the row's own. */
static void place_keys(const slice *s, const layer_weights *weights, const layer_state *state)
{
    const decode_attention_args *args = &s->attention;
    const long head_dim = s->head_dim, heads = args->num_heads, kv_heads = args->num_kv_heads;
    const long block = (args->own_length - 1) / args->block_size, column = (args->own_length - 1) % args->block_size;
    const float eps = s->model->head_norm_eps;
    for (long r = 0; r < s->rows; r++) {
        const long row = s->order[r];
        const float *cos = s->model->cos + row * head_dim, *sin = s->model->sin + row * head_dim;
        const float *query = s->w.qkv + r * s->qkv_stride, *key = query + s->q_size, *value = key + s->kv_size;
        for (long head = 0; head < heads; head++)
            norm_rope_head(head_dim, query + head * head_dim, weights->q_norm, eps, cos, sin,
                           s->w.queries + r * s->q_size + head * head_dim);
        for (long head = 0; head < kv_heads; head++) {
            const long at = ((row * kv_heads + head) * args->block_size + column) * head_dim;
            norm_rope_head(head_dim, key + head * head_dim, weights->k_norm, eps, cos, sin, state->key_blocks[block] + at);
            copy_floats(state->value_blocks[block] + at, value + head * head_dim, head_dim);
        }
    }
}

static int attention_block(slice *s, const layer_weights *weights, const layer_state *state)
{
    const decoder_step_args *model = s->model;
    const workspace w = s->w;
    const long rows = s->rows, hidden = model->hidden_size, q_size = s->q_size, kv_size = s->kv_size;
    decode_attention_args *args = &s->attention;
    rms_norm_rows(rows, hidden, w.hidden_states, weights->input_norm, model->eps, w.normed);
    linear(s, q_size + 2 * kv_size, hidden, w.normed, weights->qkv_proj, weights->qkv_bias, w.qkv);
    save(s, state->saved[SAVED_Q], q_size, w.qkv, s->qkv_stride);
    save(s, state->saved[SAVED_K], kv_size, w.qkv + q_size, s->qkv_stride);
    save(s, state->saved[SAVED_V], kv_size, w.qkv + q_size + kv_size, s->qkv_stride);
    place_keys(s, weights, state);
    args->key_blocks = (const float *const *)state->key_blocks;
    args->value_blocks = (const float *const *)state->value_blocks;
    args->prompt_keys = state->prompt_keys;
    args->prompt_values = state->prompt_values;
    for (long task = s->first_task; task < s->end_task; task++)
        for (long head = 0; head < args->num_kv_heads; head++) {
            const int status = decode_attention_task(args, s->head_dim, task, head, w.scratch);
            if (status != OK)
                return status;
        }
    save(s, state->saved[SAVED_ATTENTION], q_size, w.attention, q_size);
    save(s, state->saved[SAVED_LSE], args->num_heads, w.lse, args->num_heads);
    linear(s, hidden, q_size, w.attention, weights->o_proj, weights->o_bias, w.out);
    save(s, state->saved[SAVED_O], hidden, w.out, s->hidden_stride);
    add_rows(rows, hidden, w.out, s->hidden_stride, w.hidden_states);
    return OK;
}

static void feed_forward_block(const slice *s, const layer_weights *weights, const layer_state *state)
{
    const decoder_step_args *model = s->model;
    const workspace w = s->w;
    const long rows = s->rows, hidden = model->hidden_size, inner = model->intermediate_size;
    const long stride = s->intermediate_stride;
    rms_norm_rows(rows, hidden, w.hidden_states, weights->post_attention_norm, model->eps, w.normed);
    linear(s, 2 * stride, hidden, w.normed, weights->gate_up_proj, weights->gate_up_bias, w.gate_up);
    save(s, state->saved[SAVED_GATE], inner, w.gate_up, 2 * stride);
    save(s, state->saved[SAVED_UP], inner, w.gate_up + stride, 2 * stride);
    for (long r = 0; r < rows; r++)
        swiglu_row(inner, w.gate_up + r * 2 * stride, w.gate_up + (2 * r + 1) * stride, w.swiglu + r * inner);
    linear(s, hidden, inner, w.swiglu, weights->down_proj, weights->down_bias, w.out);
    save(s, state->saved[SAVED_DOWN], hidden, w.out, s->hidden_stride);
    add_rows(rows, hidden, w.out, s->hidden_stride, w.hidden_states);
}

static void head_logits(const slice *s)
{
    const decoder_step_args *model = s->model;
    const long hidden = model->hidden_size, vocab_size = round_up(model->vocab_size, PANEL);
    const long column = model->bf16 ? round_up(hidden, AMX_DEPTH) / 2 : hidden; /* floats in which one is stored */
    rms_norm_rows(s->rows, hidden, s->w.hidden_states, model->final_norm, model->final_eps, s->w.normed);
    round_inputs(s, hidden, s->w.normed);
    for (long p = 0; p < vocab_size; p += PANEL) {
        matmul(s, PANEL, hidden, s->w.normed, model->lm_head + p * column, s->w.out);
        for (long r = 0; r < s->rows; r++)
            copy_floats(model->logits + s->order[r] * vocab_size + p, s->w.out + r * PANEL, PANEL);
    }
}

/* The rows of the tasks from first_task up to end_task. */
static int step_rows(const decoder_step_args *model, const decode_attention_args *attention, long head_dim,
                     long first_task, long end_task)
{
    if (first_task >= end_task)
        return OK;
    const long first = attention->task_start[first_task];
    const long q_size = attention->num_heads * head_dim, kv_size = attention->num_kv_heads * head_dim;
    slice s = {
        .model = model,
        .attention = *attention,
        .head_dim = head_dim,
        .first_task = first_task,
        .end_task = end_task,
        .rows = attention->task_start[end_task - 1] + attention->task_count[end_task - 1] - first,
        .order = attention->order + first,
        .q_size = q_size,
        .kv_size = kv_size,
        .qkv_stride = round_up(q_size + 2 * kv_size, PANEL),
        .hidden_stride = round_up(model->hidden_size, PANEL),
        .intermediate_stride = round_up(model->intermediate_size, PANEL),
    };
    s.w = make_workspace(&s);
    if (s.w.memory == NULL)
        return OUT_OF_MEMORY;
    s.attention.queries = s.w.queries;
    s.attention.out = s.w.attention;
    s.attention.lse = s.w.lse;
    s.attention.in_order = 1;
    s.attention.first = first;
    for (long r = 0; r < s.rows; r++)
        copy_floats(s.w.hidden_states + r * model->hidden_size, model->hidden_states + s.order[r] * model->hidden_size,
                    model->hidden_size);
    if (model->bf16)
        amx_begin();
    int status = OK;
    for (long layer = 0; layer < model->num_layers && status == OK; layer++) {
        status = attention_block(&s, model->weights + layer, model->states + layer);
        if (status == OK)
            feed_forward_block(&s, model->weights + layer, model->states + layer);
    }
    if (status == OK)
        head_logits(&s);
    if (model->bf16)
        amx_end();
    free(s.w.memory);
    return status;
}

/* logits of all rows; each thread takes about the same number of rows, whole tasks. */
int decoder_step(int num_threads, const decoder_step_args *args, const decode_attention_args *attention, long head_dim)
{
    int status = OK;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        long threads = 1, number = 0;
#ifdef _OPENMP
        threads = omp_get_num_threads();
        number = omp_get_thread_num();
#endif
        const int64_t *start = attention->task_start;
        long first = 0, end;
        while (first < attention->num_tasks && start[first] * threads < number * attention->num_rows)
            first++;
        for (end = first; end < attention->num_tasks && start[end] * threads < (number + 1) * attention->num_rows;)
            end++;
        status = step_rows(args, attention, head_dim, first, end);
    }
    return status;
}
