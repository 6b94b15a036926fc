/* What the C files and Python share: constants, arguments of the larger functions, and all exported functions.
 *
 * float32 in row-major order.  (a, b) after a name is its shape; a matrix's stride is the distance of two rows.  `inp` and
 * `out` are an operation's input and output, `dinp` and `dout` their gradients.  One thread computes a row from start to
 * end, and sums over rows are made of NUM_PARTS partial sums, so results depend neither on the number of threads nor on
 * timing.
 *
 * spinerl.engine.cpu.bindings declares all of this a second time for ctypes; `library_info` lets it check that both agree.
 */

#ifndef SPINERL_KERNELS_H
#define SPINERL_KERNELS_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

#define ABI_VERSION 2
#define NUM_PARTS 64     /* partial sums of a gradient that is summed over rows */
#define TILE 64          /* queries, and keys, of one tile of extend attention */
#define ROWS_PER_TASK 4  /* rows of one question that one thread attends for at a time in extend attention */
#define NUM_HEAD_DIMS 5  /* sizes of a head that decode attention is compiled for */
#define NUM_SAVED 9      /* activations that the decoder step can save */
#define PARALLEL_SIZE 16384 /* numbers below which one thread is faster than several */

/* What functions return; bits, as several threads may fail. */
enum { OK = 0, OUT_OF_MEMORY = 1, UNKNOWN_HEAD_DIM = 2, UNKNOWN_SIZE = 4, NO_BF16 = 8 };

/* Attention of one new token per row to its question's prompt and to the row's own earlier tokens. */
typedef struct {
    long num_rows, num_heads, num_kv_heads;
    const float *queries;               /* (rows, heads, head_dim) */
    float scale;
    long block_size, own_length;        /* own tokens of each row, in blocks of (rows, kv_heads, block_size, head_dim) */
    const float *const *key_blocks, *const *value_blocks;
    const float *prompt_keys;           /* (questions, kv_heads, padded_length / panel, head_dim, panel): `pack_panels` */
    const float *prompt_values;         /* (questions, kv_heads, max_length, head_dim) */
    long padded_length, max_length;     /* padded_length: a multiple of the panel */
    const int64_t *prompt_lengths;      /* (questions) */
    long num_tasks;                     /* a task: some rows of one question */
    const int64_t *task_question, *task_start, *task_count; /* (tasks): rows order[start], ..., order[start + count - 1] */
    const int64_t *order;               /* (rows): row numbers sorted by question */
    float *out, *lse;                   /* (rows, heads, head_dim), (rows, heads): log-sum-exp of the scores */
    int in_order;                       /* 1: queries, out and lse are in `order`, the first one being order[first] */
    long first;
} decode_attention_args;

/* Causal attention of rows of tokens to their question's prompt and to themselves; forward and backward. */
typedef struct {
    const int64_t *row_starts;          /* (rows + 1): row i has the tokens row_starts[i], ..., row_starts[i + 1] - 1 */
    long max_row_length, num_heads, num_kv_heads, head_dim;
    const float *queries, *keys, *values; /* (tokens, heads or kv_heads, head_dim) */
    const float *prompt_keys, *prompt_values; /* (questions, kv_heads, max_length, head_dim), with these strides: */
    long question_stride, head_stride, token_stride;
    const int64_t *prompt_lengths;      /* (questions) */
    long max_length;
    float scale;
    long num_tasks, num_questions;      /* a task: some neighboring rows of one question */
    const int64_t *task_question, *task_start, *task_count; /* (tasks) */
    float *out, *lse;                   /* (tokens, heads, head_dim), (tokens, heads) */
    const float *dout;                  /* backward only, from here on; as out */
    float *dqueries, *dkeys, *dvalues;  /* as queries, keys, values */
    float *dprompt_keys, *dprompt_values; /* (questions, kv_heads, max_length, head_dim), contiguous */
    float *partial_sums;                /* (tasks, kv_heads, 2, max_length rounded up to TILE, head_dim) */
} extend_attention_args;

/* One decoder layer: matrices as `pack_panels` or `bf16_pack` makes them, biases and head norms NULL where there are none. */
typedef struct {
    const float *input_norm, *qkv_proj, *qkv_bias;  /* rows of q_proj, k_proj, v_proj */
    const float *q_norm, *k_norm;
    const float *o_proj, *o_bias;
    const float *post_attention_norm, *gate_up_proj, *gate_up_bias; /* gate_proj, up_proj, each padded to whole panels */
    const float *down_proj, *down_bias;
} layer_weights;

/* One decoder layer's keys and values for these rows, and where to save activations, by slot: what q_proj, k_proj, v_proj,
 * o_proj, gate_proj, up_proj, down_proj computed, attention's output and its lse; all NULL to save nothing. */
typedef struct {
    const float *prompt_keys, *prompt_values;
    float *const *key_blocks, *const *value_blocks;
    float *saved[NUM_SAVED];
} layer_state;

/* One new token per row through all layers, the last norm and the head. */
typedef struct {
    long num_layers, hidden_size, intermediate_size;
    float eps, head_norm_eps;
    const layer_weights *weights;       /* (layers) */
    const layer_state *states;          /* (layers) */
    const float *cos, *sin;             /* (rows, head_dim) */
    const float *hidden_states;         /* (rows, hidden_size): embeddings */
    long slot;                          /* of row 0's activations; row i's is slot + i */
    float final_eps;
    const float *final_norm, *lm_head;  /* lm_head packed */
    long vocab_size;                    /* rounded up to whole panels */
    float *logits;                      /* (rows, vocab_size) */
    long bf16;                          /* 1: matrices are packed by `bf16_pack`, in bfloat16 */
} decoder_step_args;

/* Constants and sizes, for Python to read and to check. */
typedef struct {
    long info_size, abi_version;
    long decode_attention_size, extend_attention_size, layer_weights_size, layer_state_size, decoder_step_size;
    long lanes, panel, tile, num_parts, rows_per_task, num_saved, has_wide_registers;
    long head_dims[NUM_HEAD_DIMS];
} library_info_t;

EXPORT const library_info_t *library_info(void);

/* rms_norm.c */
EXPORT int rms_norm_forward(int num_threads, long rows, long size, const float *inp, const int64_t *index, const float *add,
                            const float *weight, float eps, float *out, float *rstd);
EXPORT int rms_norm_backward(int num_threads, long rows, long size, const float *inp, const int64_t *index,
                             const float *add, const float *weight, const float *rstd, const float *dout,
                             const float *dresidual, float *dinp, float *dweight);
EXPORT int add_indexed(int num_threads, long rows, long size, const int64_t *index, const float *inp, const float *a,
                       const float *b, float *out);

/* swiglu.c */
EXPORT int swiglu_forward(int num_threads, long size, const float *gate, const float *up, float *out);
EXPORT int swiglu_backward(int num_threads, long size, const float *gate, const float *up, const float *dout, float *dgate,
                           float *dup);
EXPORT int swiglu_recompute_backward(int num_threads, long rows, long size, const int64_t *index, const float *gate,
                                     const float *up, const float *dout, float *out, float *dgate, float *dup);

/* rope.c */
EXPORT int rope(int num_threads, long tokens, long heads, long head_dim, const float *inp, const float *cos,
                const float *sin, int backward, float *out);
EXPORT int norm_rope_forward(int num_threads, long tokens, long heads, long head_dim, const int64_t *index,
                             const float *inp, const float *weight, float eps, const float *cos, const float *sin,
                             float *out);
EXPORT int norm_rope_backward(int num_threads, long tokens, long heads, long head_dim, const int64_t *index,
                              const float *inp, const float *weight, float eps, const float *cos, const float *sin,
                              const float *dout, float *dinp, float *dweight);

/* gemm.c */
EXPORT int pack_panels(int num_threads, long n, long k, const float *weight, float *out);
EXPORT int grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp, float *dweight);
EXPORT int grad_input(int num_threads, long rows, long k, long n, const float *dout, const float *weight, float *dinp,
                      int add);

/* bf16.c; bf16_available: OK, or NO_BF16 where processor, system or compiler know none, and then the others return it too */
EXPORT int bf16_available(int num_threads);
EXPORT int bf16_pack(int num_threads, long n, long depth, const float *matrix, int transposed, uint16_t *out);
EXPORT int bf16_matmul(int num_threads, long rows, long n, long depth, const float *inp, const uint16_t *packed, float *out,
                      int add);
EXPORT int bf16_grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp,
                           float *dweight);

/* sampling.c */
EXPORT int sample(int num_threads, long rows, long vocab_size, long stride, const float *logits, float inv_temperature,
                  const float *uniforms, int64_t *tokens, float *logprobs, float *entropies);

/* decode_attention.c */
EXPORT int decode_attention(int num_threads, const decode_attention_args *args, long head_dim);
int decode_attention_task(const decode_attention_args *args, long head_dim, long task, long kv_head, float *scratch);
long decode_attention_scratch(const decode_attention_args *args, long head_dim, long max_rows);

/* extend_attention.c */
EXPORT int extend_attention_forward(int num_threads, const extend_attention_args *args);
EXPORT int extend_attention_backward(int num_threads, const extend_attention_args *args);

/* decoder_step.c */
EXPORT int decoder_step(int num_threads, const decoder_step_args *args, const decode_attention_args *attention,
                        long head_dim);

/* Memory for so many numbers, aligned to 64 bytes; NULL where there is none. */
static inline float *alloc_floats(long count)
{
    return aligned_alloc(64, ((size_t)(count > 0 ? count : 1) * sizeof(float) + 63) / 64 * 64);
}

#endif
