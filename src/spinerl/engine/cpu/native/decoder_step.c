/* One new token per row through all layers of a decoder, the last norm and the head.
 *
 * Of small weights a thread takes some rows from the first layer to the last, as no row depends on another: its activations
 * stay in its caches, and threads meet only at the end.  Weights too large for its caches each thread would then read as a
 * whole from memory: there each can take some columns of a matmul for all rows, so that they are read once, and threads meet
 * after each part of a layer. */

#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "bf16.h"
#include "gemm.h"
#include "kernels.h"
#include "rms_norm.h"
#include "rope.h"
#include "simd.h"
#include "swiglu.h"

#define SPLIT_BYTES (16L << 20) /* of weights, from which on threads may take columns */
#define STEPS_BETWEEN 16        /* trials of the other way, at least */

enum { SAVED_Q, SAVED_K, SAVED_V, SAVED_O, SAVED_GATE, SAVED_UP, SAVED_DOWN, SAVED_ATTENTION, SAVED_LSE };
_Static_assert(SAVED_LSE + 1 == NUM_SAVED, "one for each");

/* What some rows are worked on with, by one thread or by all; strides are sizes rounded up to whole panels. */
typedef struct {
    float *hidden_states, *normed;                    /* (rows, hidden_size) */
    float *qkv;                                       /* (rows, qkv_stride) */
    float *queries, *attention;                       /* (rows, heads, head_dim): queries after RoPE; attention's output */
    float *lse;                                       /* (rows, heads) */
    float *out;                                       /* (rows, hidden_stride) of o_proj, of down_proj */
    float *logits;                                    /* (parts, rows, PANEL) */
    float *gate_up;                                   /* (rows, 2, intermediate_stride) */
    float *swiglu;                                    /* (rows, intermediate_size) */
    float *scratch;                                   /* (parts, scratch_size) of attention */
    float *rounded;                                   /* inputs of a matmul in bfloat16, where that is asked for */
    float *memory;
} workspace;

/* Rows order[0], ..., order[rows - 1], which are the tasks first_task, ..., end_task - 1; and what one thread does of them:
 * part `part` of `parts` of the columns of a matmul, of attention's heads, and of all else first_row up to end_row. */
typedef struct {
    const decoder_step_args *model;
    decode_attention_args attention;
    long head_dim, first_task, end_task, rows;
    long part, parts, first_row, end_row;
    const int64_t *order;
    long q_size, kv_size, qkv_stride, hidden_stride, intermediate_stride, scratch_size;
    workspace w;
} slice;

/* memory is NULL where there is none. */
static workspace make_workspace(const slice *s)
{
    enum { PIECES = 12 };
    const long rows = s->rows, heads = s->attention.num_heads;
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
        s->parts * rows * PANEL,
        rows * 2 * s->intermediate_stride,
        rows * s->model->intermediate_size,
        s->parts * s->scratch_size,
        s->model->bf16 ? round_up(rows, BF16_ROWS) * round_up(inputs, BF16_DEPTH) / 2 : 0,
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
                       pieces[6], pieces[7], pieces[8], pieces[9], pieces[10], pieces[11], memory};
}

/* What the other threads of these rows have computed so far is there. */
static void meet(const slice *s)
{
    if (s->parts > 1) {
#pragma omp barrier
    }
}

/* Floats in which a column of a packed matrix (k, n) is stored. */
static long column_size(const decoder_step_args *model, long k)
{
    return model->bf16 ? round_up(k, BF16_DEPTH) / 2 : k;
}

/* Columns first up to end, whole panels, of inp (rows, k) times a packed matrix; inputs are rounded already where they have
 * to be (`share_inputs`). */
static void matmul(const slice *s, long first, long end, long k, const float *inp, const float *weight, float *out,
                   long stride)
{
    weight += first * column_size(s->model, k);
    if (s->model->bf16)
        bf16_gemm(s->rows, end - first, k, (const uint16_t *)s->w.rounded, (const uint16_t *)weight, out, stride, 0);
    else
        for (long p = 0; p < end - first; p += PANEL)
            gemm_column(BLOCK_VECTORS, s->rows, k, inp, k, 1, weight + p * k, PANEL, out + p, stride, 0);
}

/* This thread's rows of inp (rows, k) are there for the matmuls of all. */
static void share_inputs(const slice *s, long k, const float *inp)
{
    uint16_t *rounded = (uint16_t *)s->w.rounded + s->first_row * round_up(k, BF16_DEPTH);
    if (s->model->bf16)
        bf16_round(s->end_row - s->first_row, k, inp + s->first_row * k, k, rounded);
    meet(s);
}

/* The first of this thread's columns, of so many: whole panels.  It ends where part + 1 begins. */
static long first_column(const slice *s, long part, long columns) { return columns / PANEL * part / s->parts * PANEL; }

/* out (rows, n rounded up to panels) = inp (rows, k) weight^T + bias; weight packed, bias padded to panels or NULL. */
static void linear(const slice *s, long n, long k, const float *inp, const float *weight, const float *bias, float *out)
{
    const long stride = round_up(n, PANEL);
    const long first = first_column(s, s->part, stride), end = first_column(s, s->part + 1, stride);
    share_inputs(s, k, inp);
    matmul(s, first, end, k, inp, weight, out + first, stride);
    if (bias)
        for (long row = 0; row < s->rows; row++)
            for (long i = first; i < end; i += LANES)
                store(out + row * stride + i, load(out + row * stride + i) + load(bias + i));
    meet(s);
}

static void rms_norm_rows(const slice *s, const float *weight, float eps)
{
    const long size = s->model->hidden_size;
    for (long row = s->first_row; row < s->end_row; row++)
        rms_norm_row(size, s->w.hidden_states + row * size, NULL, weight, eps, s->w.normed + row * size);
}

/* hidden_states += out. */
static void add_rows(const slice *s)
{
    const long size = s->model->hidden_size;
    for (long row = s->first_row; row < s->end_row; row++)
        for (long i = 0; i < size; i++)
            s->w.hidden_states[row * size + i] += s->w.out[row * s->hidden_stride + i];
}

/* The rows of inp (rows, size), with this stride, into their slots; nothing if out is NULL. */
static void save(const slice *s, float *out, long size, const float *inp, long stride)
{
    if (out)
        for (long row = s->first_row; row < s->end_row; row++)
            copy_floats(out + (s->model->slot + s->order[row]) * size, inp + row * stride, size);
}

/* RMSNorm and RoPE of queries and keys; keys and values go to the end of the row's own. */
static void place_keys(const slice *s, const layer_weights *weights, const layer_state *state)
{
    const decode_attention_args *args = &s->attention;
    const long head_dim = s->head_dim, heads = args->num_heads, kv_heads = args->num_kv_heads;
    const long block = (args->own_length - 1) / args->block_size, column = (args->own_length - 1) % args->block_size;
    const float eps = s->model->head_norm_eps;
    for (long r = s->first_row; r < s->end_row; r++) {
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
    const long hidden = model->hidden_size, q_size = s->q_size, kv_size = s->kv_size;
    decode_attention_args *args = &s->attention;
    int status = OK;
    rms_norm_rows(s, weights->input_norm, model->eps);
    linear(s, q_size + 2 * kv_size, hidden, w.normed, weights->qkv_proj, weights->qkv_bias, w.qkv);
    save(s, state->saved[SAVED_Q], q_size, w.qkv, s->qkv_stride);
    save(s, state->saved[SAVED_K], kv_size, w.qkv + q_size, s->qkv_stride);
    save(s, state->saved[SAVED_V], kv_size, w.qkv + q_size + kv_size, s->qkv_stride);
    place_keys(s, weights, state);
    args->key_blocks = (const float *const *)state->key_blocks;
    args->value_blocks = (const float *const *)state->value_blocks;
    args->prompt_keys = state->prompt_keys;
    args->prompt_values = state->prompt_values;
    meet(s);
    const long heads = args->num_kv_heads;
    for (long i = s->first_task * heads + s->part; i < s->end_task * heads; i += s->parts)
        status |= decode_attention_task(args, s->head_dim, i / heads, i % heads, w.scratch + s->part * s->scratch_size);
    meet(s);
    save(s, state->saved[SAVED_ATTENTION], q_size, w.attention, q_size);
    save(s, state->saved[SAVED_LSE], args->num_heads, w.lse, args->num_heads);
    linear(s, hidden, q_size, w.attention, weights->o_proj, weights->o_bias, w.out);
    save(s, state->saved[SAVED_O], hidden, w.out, s->hidden_stride);
    add_rows(s);
    return status;
}

static void feed_forward_block(const slice *s, const layer_weights *weights, const layer_state *state)
{
    const decoder_step_args *model = s->model;
    const workspace w = s->w;
    const long hidden = model->hidden_size, inner = model->intermediate_size, stride = s->intermediate_stride;
    rms_norm_rows(s, weights->post_attention_norm, model->eps);
    linear(s, 2 * stride, hidden, w.normed, weights->gate_up_proj, weights->gate_up_bias, w.gate_up);
    save(s, state->saved[SAVED_GATE], inner, w.gate_up, 2 * stride);
    save(s, state->saved[SAVED_UP], inner, w.gate_up + stride, 2 * stride);
    for (long r = s->first_row; r < s->end_row; r++)
        swiglu_row(inner, w.gate_up + r * 2 * stride, w.gate_up + (2 * r + 1) * stride, w.swiglu + r * inner);
    linear(s, hidden, inner, w.swiglu, weights->down_proj, weights->down_bias, w.out);
    save(s, state->saved[SAVED_DOWN], hidden, w.out, s->hidden_stride);
    add_rows(s);
}

static void head_logits(const slice *s)
{
    const decoder_step_args *model = s->model;
    const long hidden = model->hidden_size, vocab_size = round_up(model->vocab_size, PANEL);
    const long end = first_column(s, s->part + 1, vocab_size);
    float *panel = s->w.logits + s->part * s->rows * PANEL;
    rms_norm_rows(s, model->final_norm, model->final_eps);
    share_inputs(s, hidden, s->w.normed);
    for (long p = first_column(s, s->part, vocab_size); p < end; p += PANEL) {
        matmul(s, p, p + PANEL, hidden, s->w.normed, model->lm_head, panel, PANEL);
        for (long r = 0; r < s->rows; r++)
            copy_floats(model->logits + s->order[r] * vocab_size + p, panel + r * PANEL, PANEL);
    }
}

/* The rows of the tasks from first_task up to end_task, all of them done by one of so many threads. */
static slice make_slice(const decoder_step_args *model, const decode_attention_args *attention, long head_dim,
                        long first_task, long end_task, long parts)
{
    const long first = attention->task_start[first_task];
    const long q_size = attention->num_heads * head_dim, kv_size = attention->num_kv_heads * head_dim;
    long max_rows = 0;
    for (long task = first_task; task < end_task; task++)
        max_rows = attention->task_count[task] > max_rows ? attention->task_count[task] : max_rows;
    slice s = {
        .model = model,
        .attention = *attention,
        .head_dim = head_dim,
        .first_task = first_task,
        .end_task = end_task,
        .rows = attention->task_start[end_task - 1] + attention->task_count[end_task - 1] - first,
        .parts = parts,
        .order = attention->order + first,
        .q_size = q_size,
        .kv_size = kv_size,
        .qkv_stride = round_up(q_size + 2 * kv_size, PANEL),
        .hidden_stride = round_up(model->hidden_size, PANEL),
        .intermediate_stride = round_up(model->intermediate_size, PANEL),
        .scratch_size = round_up(decode_attention_scratch(attention, head_dim, max_rows), LANES),
    };
    s.attention.in_order = 1;
    s.attention.first = first;
    return s;
}

static int open_workspace(slice *s)
{
    s->w = make_workspace(s);
    s->attention.queries = s->w.queries;
    s->attention.out = s->w.attention;
    s->attention.lse = s->w.lse;
    return s->w.memory == NULL ? OUT_OF_MEMORY : OK;
}

/* What thread `part` does of these rows; all `parts` of them have to come here. */
static int step_slice(slice s, long part)
{
    const decoder_step_args *model = s.model;
    s.part = part;
    s.first_row = s.rows * part / s.parts;
    s.end_row = s.rows * (part + 1) / s.parts;
    for (long r = s.first_row; r < s.end_row; r++)
        copy_floats(s.w.hidden_states + r * model->hidden_size, model->hidden_states + s.order[r] * model->hidden_size,
                    model->hidden_size);
    if (model->bf16)
        bf16_begin();
    int status = OK;
    for (long layer = 0; layer < model->num_layers; layer++) {
        status |= attention_block(&s, model->weights + layer, model->states + layer);
        feed_forward_block(&s, model->weights + layer, model->states + layer);
    }
    head_logits(&s);
    if (model->bf16)
        bf16_end();
    return status;
}

/* Of the packed weights of the layers and of the head. */
static long weight_bytes(const slice *s)
{
    const decoder_step_args *model = s->model;
    const long hidden = column_size(model, model->hidden_size);
    const long layer = (s->qkv_stride + 2 * s->intermediate_stride) * hidden +
                       s->hidden_stride * (column_size(model, s->q_size) + column_size(model, model->intermediate_size));
    return (model->num_layers * layer + round_up(model->vocab_size, PANEL) * hidden) * (long)sizeof(float);
}

/* logits of all rows; each thread takes some columns (split), or about the same number of rows, whole tasks. */
static int step_threads(int num_threads, const slice *rows, int split)
{
    const decode_attention_args *attention = &rows->attention;
    const int64_t *start = attention->task_start;
    int status = OK;
    slice all = *rows;
    if (split && open_workspace(&all) != OK)
        return OUT_OF_MEMORY;
#pragma omp parallel num_threads(num_threads) firstprivate(all) reduction(| : status)
    {
        long threads = 1, number = 0;
#ifdef _OPENMP
        threads = omp_get_num_threads();
        number = omp_get_thread_num();
#endif
        if (split) {
            all.parts = threads;
            status = step_slice(all, number);
        } else {
            long first = 0, end;
            while (first < attention->num_tasks && start[first] * threads < number * attention->num_rows)
                first++;
            for (end = first; end < attention->num_tasks && start[end] * threads < (number + 1) * attention->num_rows;)
                end++;
            if (first < end) {
                slice own = make_slice(all.model, attention, all.head_dim, first, end, 1);
                status = open_workspace(&own);
                if (status == OK)
                    status = step_slice(own, 0);
                free(own.w.memory);
            }
        }
    }
    free(all.w.memory);
    return status;
}

static double seconds_now(void)
{
#ifdef _OPENMP
    return omp_get_wtime();
#else
    return 0.0;
#endif
}

/* Columns are the faster way while each thread has a core: where others want it too, all wait for the thread that waits.  Both
 * ways give the same bits, so large weights go the way that was the faster one when both were last tried. */
int decoder_step(int num_threads, const decoder_step_args *args, const decode_attention_args *attention, long head_dim)
{
    static struct {
        int split;
        long left;      /* steps until the other way is tried */
        long rows;      /* of the last step that was no trial */
        double seconds; /* that it took */
    } way = {1, STEPS_BETWEEN, 0, 0.0};
    const slice rows = make_slice(args, attention, head_dim, 0, attention->num_tasks, num_threads);
    if (num_threads == 1 || weight_bytes(&rows) <= SPLIT_BYTES)
        return step_threads(num_threads, &rows, 0);
    const int tries = --way.left <= 0 && rows.rows == way.rows, split = tries ? !way.split : way.split;
    const double before = seconds_now();
    const int status = step_threads(num_threads, &rows, split);
    const double seconds = seconds_now() - before;
    if (!tries) {
        way.seconds = seconds;
        way.rows = rows.rows;
    } else if (seconds < way.seconds) {
        way.split = split;
        way.left = STEPS_BETWEEN;
    } else { /* the more it cost, the later again */
        const double times = seconds / (way.seconds > 0.0 ? way.seconds : seconds);
        way.left = STEPS_BETWEEN * (long)(times < 64.0 ? times : 64.0);
    }
    return status;
}
