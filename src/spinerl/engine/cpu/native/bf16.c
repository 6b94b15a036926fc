/* Matmul of bfloat16 factors, packed weights for it, a linear layer and its gradients. */

#include "bf16.h"

#include <string.h>

#include "gemm.h"
#include "kernels.h"

#if HAS_BF16

_Static_assert(PANEL == BF16_COLUMNS, "decoder_step.c takes one packing for the other");

#include <immintrin.h>

#define PREFETCH 4      /* blocks of BF16_DEPTH rows of b that are asked for ahead */
#define CHUNK 128       /* rows that a thread takes through all columns */
#define BLOCK_COLUMNS 4 /* blocks side by side: BF16_COLUMNS */

/* ---- the sums of up to BF16_ROWS rows and BF16_COLUMNS columns: c = or += a b ---- */

typedef uint32_t pair __attribute__((aligned(2), may_alias)); /* of neighbours in a row of a */

/* The next of b's rows, where they come from memory. */
INLINE void prefetch_blocks(const uint16_t *block)
{
    for (long at = 0; at < BLOCK_COLUMNS * BF16_BLOCK; at += 32)
        _mm_prefetch((const char *)(block + PREFETCH * BLOCK_COLUMNS * BF16_BLOCK + at), _MM_HINT_T1);
}

SPECIALIZE void dot_rows(const int rows, long width, const uint16_t *a, const uint16_t *b, float *c, long c_stride,
                         const int add, const int prefetch)
{
    __m512 sums[BLOCK_ROWS][BLOCK_COLUMNS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < BLOCK_COLUMNS; v++)
            sums[i][v] = add ? _mm512_loadu_ps(c + i * c_stride + v * LANES) : _mm512_setzero_ps();
    for (long d = 0; d < width; d += BF16_DEPTH, b += BLOCK_COLUMNS * BF16_BLOCK) {
        if (prefetch)
            prefetch_blocks(b);
        for (long p = 0; p < BF16_DEPTH; p += 2) {
            __m512bh of_b[BLOCK_COLUMNS];
            UNROLL for (int v = 0; v < BLOCK_COLUMNS; v++)
                of_b[v] = (__m512bh)_mm512_loadu_si512(b + v * BF16_BLOCK + p * LANES);
            UNROLL for (int i = 0; i < rows; i++) {
                const __m512bh of_a = (__m512bh)_mm512_set1_epi32((int)*(const pair *)(a + i * width + d + p));
                UNROLL for (int v = 0; v < BLOCK_COLUMNS; v++)
                    sums[i][v] = _mm512_dpbf16_ps(sums[i][v], of_a, of_b[v]);
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < BLOCK_COLUMNS; v++)
            _mm512_storeu_ps(c + i * c_stride + v * LANES, sums[i][v]);
}

static void dot_block(long rows, long width, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add,
                      int prefetch)
{
#define DOT_ROWS(num_rows)                                                                                             \
    for (; i + num_rows <= rows; i += num_rows, prefetch = 0) {                                                        \
        if (add)                                                                                                       \
            dot_rows(num_rows, width, a + i * width, b, c + i * c_stride, c_stride, 1, prefetch);                      \
        else                                                                                                           \
            dot_rows(num_rows, width, a + i * width, b, c + i * c_stride, c_stride, 0, prefetch);                      \
    }
    long i = 0;
    DOT_ROWS(BLOCK_ROWS)
    DOT_ROWS(4)
    DOT_ROWS(2)
    DOT_ROWS(1)
#undef DOT_ROWS
}

#if HAS_AMX

#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* arch_prctl: ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18              /* what is asked for: XFEATURE_XTILEDATA */

static int has_tiles; /* the system lets this process use matrix registers */

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

/* Static: GCC 12 takes a local one for unused beyond its first bytes. */
static const tile_config config = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

int bf16_available(int num_threads)
{
    has_tiles = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return OK;
}

void bf16_begin(void)
{
    if (has_tiles)
        _tile_loadconfig(&config);
}

void bf16_end(void)
{
    if (has_tiles)
        _tile_release();
}

/* All BF16_ROWS rows. */
static void tile_block(long width, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add, int prefetch)
{
    const long stride = c_stride * (long)sizeof(float);
    if (add) {
        _tile_loadd(0, c, stride);
        _tile_loadd(1, c + 16, stride);
        _tile_loadd(2, c + 32, stride);
        _tile_loadd(3, c + 48, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (long d = 0; d < width; d += BF16_DEPTH, b += BLOCK_COLUMNS * BF16_BLOCK) {
        if (prefetch)
            prefetch_blocks(b);
        _tile_loadd(4, a + d, width * (long)sizeof(uint16_t));
        _tile_loadd(5, b, 64);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(6, b + BF16_BLOCK, 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, b + 2 * BF16_BLOCK, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, b + 3 * BF16_BLOCK, 64);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 32, stride);
    _tile_stored(3, c + 48, stride);
}

#else

enum { has_tiles = 0 };

int bf16_available(int num_threads) { return OK; }

void bf16_begin(void) {}

void bf16_end(void) {}

static void tile_block(long width, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add, int prefetch) {}

#endif

void bf16_gemm(long m, long n, long depth, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add)
{
    const long width = round_up(depth, BF16_DEPTH), most_rows = has_tiles ? BF16_ROWS : BLOCK_ROWS;
    float edge[BF16_ROWS * BF16_COLUMNS] __attribute__((aligned(64)));
    for (long p = 0; p < n; p += BF16_COLUMNS, b += BF16_COLUMNS * width)
        for (long i = 0; i < m; i += most_rows) {
            const long rows = min_long(most_rows, m - i), columns = min_long(BF16_COLUMNS, n - p);
            const int whole = columns == BF16_COLUMNS && (rows == most_rows || !has_tiles);
            float *block = c + i * c_stride + p, *out = whole ? block : edge;
            const long stride = whole ? c_stride : BF16_COLUMNS;
            if (!whole && add)
                for (long row = 0; row < rows; row++)
                    memcpy(edge + row * BF16_COLUMNS, block + row * c_stride, (size_t)columns * sizeof(float));
            if (has_tiles)
                tile_block(width, a + i * width, b, out, stride, add, i == 0);
            else
                dot_block(rows, width, a + i * width, b, out, stride, add, i == 0);
            if (!whole)
                for (long row = 0; row < rows; row++)
                    memcpy(block + row * c_stride, edge + row * BF16_COLUMNS, (size_t)columns * sizeof(float));
        }
}

/* ---- rounding and packing ---- */

static uint16_t *alloc_halves(long count) { return (uint16_t *)alloc_floats((count + 1) / 2); }

/* 32 numbers, of which only the first `count` are there. */
INLINE __m512i round_32(const float *x, long count)
{
    const uint32_t there = count >= 32 ? ~0u : (1u << count) - 1;
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, x);
    const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

void bf16_round(long rows, long k, const float *inp, long stride, uint16_t *out)
{
    const long width = round_up(k, BF16_DEPTH);
    for (long row = 0; row < rows; row++)
        for (long d = 0; d < width; d += BF16_DEPTH)
            _mm512_storeu_si512(out + row * width + d, round_32(inp + row * stride + d, k - d));
}

/* Rows of 16 numbers of 32 bits become columns: halves of pairs of rows are interleaved, four times. */
INLINE void transpose_16(__m512i *x)
{
    __m512i y[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
        }
    UNROLL for (int i = 0; i < 4; i++) { /* column i of each quarter, of rows 0 to 7 and 8 to 15 */
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

/* One register of b for 32 rows and 16 columns of weight^T, of which so many are there; weight (n, k) has this stride. */
INLINE void pack_transposed(const float *weight, long stride, long depth, long columns, uint16_t *out)
{
    __m512i pairs[16];
    UNROLL for (long i = 0; i < 16; i++)
        pairs[i] = i < columns ? round_32(weight + i * stride, depth) : _mm512_setzero_si512();
    transpose_16(pairs);
    UNROLL for (long i = 0; i < 16; i++)
        _mm512_storeu_si512(out + i * BF16_DEPTH, pairs[i]);
}

/* One register of b for 32 rows and 16 columns of inp (rows, n), of which so many are there. */
INLINE void pack_rows(const float *inp, long stride, long depth, long columns, uint16_t *out)
{
    const __mmask16 there = columns >= 16 ? (__mmask16)~0 : (__mmask16)((1u << columns) - 1);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (long d = 0; d < BF16_DEPTH; d += 2) {
        const __m512 first = d < depth ? _mm512_maskz_loadu_ps(there, inp + d * stride) : _mm512_setzero_ps();
        const __m512 second = d + 1 < depth ? _mm512_maskz_loadu_ps(there, inp + (d + 1) * stride) : _mm512_setzero_ps();
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_storeu_si512(out + d * 16, _mm512_permutexvar_epi16(order, both));
    }
}

/* The columns from 64 p on of b, which is matrix (depth, n), or matrix (n, depth) transposed. */
static void pack_columns(long p, long n, long depth, const float *matrix, int transposed, uint16_t *out)
{
    out += p * BF16_COLUMNS * round_up(depth, BF16_DEPTH);
    for (long d = 0; d < depth; d += BF16_DEPTH)
        for (long j = p * BF16_COLUMNS; j < (p + 1) * BF16_COLUMNS; j += 16, out += BF16_BLOCK) {
            const long columns = n - j > 0 ? n - j : 0;
            if (transposed)
                pack_transposed(matrix + j * depth + d, depth, depth - d, columns, out);
            else
                pack_rows(matrix + d * n + j, n, depth - d, columns, out);
        }
}

/* ---- a linear layer and its gradients ---- */

int bf16_pack(int num_threads, long n, long depth, const float *matrix, int transposed, uint16_t *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (long p = 0; p < ceil_div(n, BF16_COLUMNS); p++)
        pack_columns(p, n, depth, matrix, transposed, out);
    return OK;
}

int bf16_matmul(int num_threads, long rows, long n, long depth, const float *inp, const uint16_t *packed, float *out, int add)
{
    int status = OK;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        uint16_t *rounded = alloc_halves(CHUNK * round_up(depth, BF16_DEPTH));
        status = rounded == NULL ? OUT_OF_MEMORY : OK;
        bf16_begin();
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < ceil_div(rows, CHUNK); chunk++) {
            const long first = chunk * CHUNK, m = min_long(CHUNK, rows - first);
            if (rounded == NULL)
                continue;
            bf16_round(m, depth, inp + first * depth, depth, rounded);
            bf16_gemm(m, n, depth, rounded, packed, out + first * n, n, add);
        }
        bf16_end();
        free(rounded);
    }
    return status;
}

/* out (16, rows rounded up) = 16 columns of dout (rows, n), of which so many are there, rounded. */
static void round_columns(long rows, long n, long columns, const float *dout, uint16_t *out)
{
    const long width = round_up(rows, BF16_DEPTH);
    uint16_t tile[BF16_BLOCK] __attribute__((aligned(64)));
    __m512i pairs[16];
    for (long d = 0; d < rows; d += BF16_DEPTH) {
        pack_rows(dout + d * n, n, rows - d, columns, tile);
        UNROLL for (long i = 0; i < 16; i++)
            pairs[i] = _mm512_load_si512(tile + i * BF16_DEPTH);
        transpose_16(pairs);
        UNROLL for (long i = 0; i < 16; i++)
            _mm512_storeu_si512(out + i * width + d, pairs[i]);
    }
}

int bf16_grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp, float *dweight)
{
    const long panels = ceil_div(k, BF16_COLUMNS), width = round_up(rows, BF16_DEPTH);
    uint16_t *packed = alloc_halves(panels * BF16_COLUMNS * width);
    if (packed == NULL)
        return OUT_OF_MEMORY;
    int status = OK;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        uint16_t *columns = alloc_halves(CHUNK * width);
        status = columns == NULL ? OUT_OF_MEMORY : OK;
        bf16_begin();
#pragma omp for schedule(static)
        for (long p = 0; p < panels; p++)
            pack_columns(p, k, rows, inp, 0, packed);
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < ceil_div(n, CHUNK); chunk++) {
            const long first = chunk * CHUNK, m = min_long(CHUNK, n - first);
            if (columns == NULL)
                continue;
            for (long i = 0; i < m; i += BF16_ROWS)
                round_columns(rows, n, min_long(16, n - first - i), dout + first + i, columns + i * width);
            bf16_gemm(m, k, rows, columns, packed, dweight + first * k, k, 0);
        }
        bf16_end();
        free(columns);
    }
    free(packed);
    return status;
}

#else

int bf16_available(int num_threads) { return NO_BF16; }

void bf16_begin(void) {}

void bf16_end(void) {}

void bf16_round(long rows, long k, const float *inp, long stride, uint16_t *out) {}

void bf16_gemm(long m, long n, long depth, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add) {}

int bf16_pack(int num_threads, long n, long depth, const float *matrix, int transposed, uint16_t *out) { return NO_BF16; }

int bf16_matmul(int num_threads, long rows, long n, long depth, const float *inp, const uint16_t *packed, float *out, int add)
{
    return NO_BF16;
}

int bf16_grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp, float *dweight)
{
    return NO_BF16;
}

#endif
