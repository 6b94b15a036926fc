/* Matmul in matrix registers, packed weights for it, a linear layer and its gradients. */

#include "amx.h"

#include <string.h>

#include "gemm.h"
#include "kernels.h"

#if HAS_AMX

_Static_assert(PANEL == AMX_COLUMNS, "decoder_step.c takes one packing for the other");

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REQUEST_PERMISSION 0x1023 /* arch_prctl: ARCH_REQ_XCOMP_PERM */
#define TILE_DATA 18              /* what is asked for: XFEATURE_XTILEDATA */
#define PREFETCH 4                 /* blocks of AMX_DEPTH rows of b that are asked for ahead */
#define CHUNK 128                 /* rows that a thread takes through all columns */

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

int amx_available(int num_threads)
{
    (void)num_threads;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? OK : NO_AMX;
}

void amx_begin(void) { _tile_loadconfig(&config); }

void amx_end(void) { _tile_release(); }

static uint16_t *alloc_halves(long count) { return (uint16_t *)alloc_floats((count + 1) / 2); }

/* 32 numbers, of which only the first `count` are there. */
INLINE __m512i round_32(const float *x, long count)
{
    const uint32_t there = count >= 32 ? ~0u : (1u << count) - 1;
    const __m512 low = _mm512_maskz_loadu_ps((__mmask16)there, x);
    const __m512 high = _mm512_maskz_loadu_ps((__mmask16)(there >> 16), x + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

void amx_round(long rows, long k, const float *inp, long stride, uint16_t *out)
{
    const long width = round_up(k, AMX_DEPTH);
    for (long row = 0; row < rows; row++)
        for (long d = 0; d < width; d += AMX_DEPTH)
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
        _mm512_storeu_si512(out + i * AMX_DEPTH, pairs[i]);
}

/* One register of b for 32 rows and 16 columns of inp (rows, n), of which so many are there. */
INLINE void pack_rows(const float *inp, long stride, long depth, long columns, uint16_t *out)
{
    const __mmask16 there = columns >= 16 ? (__mmask16)~0 : (__mmask16)((1u << columns) - 1);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (long d = 0; d < AMX_DEPTH; d += 2) {
        const __m512 first = d < depth ? _mm512_maskz_loadu_ps(there, inp + d * stride) : _mm512_setzero_ps();
        const __m512 second = d + 1 < depth ? _mm512_maskz_loadu_ps(there, inp + (d + 1) * stride) : _mm512_setzero_ps();
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(second, first);
        _mm512_storeu_si512(out + d * 16, _mm512_permutexvar_epi16(order, both));
    }
}

/* The columns from 64 p on of b, which is matrix (depth, n), or matrix (n, depth) transposed. */
static void pack_columns(long p, long n, long depth, const float *matrix, int transposed, uint16_t *out)
{
    out += p * AMX_COLUMNS * round_up(depth, AMX_DEPTH);
    for (long d = 0; d < depth; d += AMX_DEPTH)
        for (long j = p * AMX_COLUMNS; j < (p + 1) * AMX_COLUMNS; j += 16, out += AMX_TILE) {
            const long columns = n - j > 0 ? n - j : 0;
            if (transposed)
                pack_transposed(matrix + j * depth + d, depth, depth - d, columns, out);
            else
                pack_rows(matrix + d * n + j, n, depth - d, columns, out);
        }
}

void amx_gemm(long m, long n, long depth, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add)
{
    const long width = round_up(depth, AMX_DEPTH);
    float edge[AMX_ROWS * AMX_COLUMNS] __attribute__((aligned(64)));
    for (long p = 0; p < n; p += AMX_COLUMNS, b += AMX_COLUMNS * width)
        for (long i = 0; i < m; i += AMX_ROWS) {
            const long rows = min_long(AMX_ROWS, m - i), columns = min_long(AMX_COLUMNS, n - p);
            const int whole = rows == AMX_ROWS && columns == AMX_COLUMNS;
            float *block = c + i * c_stride + p, *out = whole ? block : edge;
            const long stride = (whole ? c_stride : AMX_COLUMNS) * (long)sizeof(float);
            if (!whole && add)
                for (long row = 0; row < rows; row++)
                    memcpy(edge + row * AMX_COLUMNS, block + row * c_stride, (size_t)columns * sizeof(float));
            if (add) {
                _tile_loadd(0, out, stride);
                _tile_loadd(1, out + 16, stride);
                _tile_loadd(2, out + 32, stride);
                _tile_loadd(3, out + 48, stride);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            const uint16_t *tile = b;
            for (long d = 0; d < width; d += AMX_DEPTH, tile += 4 * AMX_TILE) {
                if (i == 0)
                    for (long at = 0; at < 4 * AMX_TILE; at += 32)
                        _mm_prefetch((const char *)(tile + PREFETCH * 4 * AMX_TILE + at), _MM_HINT_T1);
                _tile_loadd(4, a + i * width + d, width * (long)sizeof(uint16_t));
                _tile_loadd(5, tile, 64);
                _tile_dpbf16ps(0, 4, 5);
                _tile_loadd(6, tile + AMX_TILE, 64);
                _tile_dpbf16ps(1, 4, 6);
                _tile_loadd(7, tile + 2 * AMX_TILE, 64);
                _tile_dpbf16ps(2, 4, 7);
                _tile_loadd(5, tile + 3 * AMX_TILE, 64);
                _tile_dpbf16ps(3, 4, 5);
            }
            _tile_stored(0, out, stride);
            _tile_stored(1, out + 16, stride);
            _tile_stored(2, out + 32, stride);
            _tile_stored(3, out + 48, stride);
            if (!whole)
                for (long row = 0; row < rows; row++)
                    memcpy(block + row * c_stride, edge + row * AMX_COLUMNS, (size_t)columns * sizeof(float));
        }
}

int amx_pack(int num_threads, long n, long depth, const float *matrix, int transposed, uint16_t *out)
{
#pragma omp parallel for schedule(static) num_threads(num_threads)
    for (long p = 0; p < ceil_div(n, AMX_COLUMNS); p++)
        pack_columns(p, n, depth, matrix, transposed, out);
    return OK;
}

int amx_matmul(int num_threads, long rows, long n, long depth, const float *inp, const uint16_t *packed, float *out, int add)
{
    int status = OK;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        uint16_t *rounded = alloc_halves(CHUNK * round_up(depth, AMX_DEPTH));
        status = rounded == NULL ? OUT_OF_MEMORY : OK;
        amx_begin();
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < ceil_div(rows, CHUNK); chunk++) {
            const long first = chunk * CHUNK, m = min_long(CHUNK, rows - first);
            if (rounded == NULL)
                continue;
            amx_round(m, depth, inp + first * depth, depth, rounded);
            amx_gemm(m, n, depth, rounded, packed, out + first * n, n, add);
        }
        amx_end();
        free(rounded);
    }
    return status;
}

/* out (16, rows rounded up) = 16 columns of dout (rows, n), of which so many are there, rounded. */
static void round_columns(long rows, long n, long columns, const float *dout, uint16_t *out)
{
    const long width = round_up(rows, AMX_DEPTH);
    uint16_t tile[AMX_TILE] __attribute__((aligned(64)));
    __m512i pairs[16];
    for (long d = 0; d < rows; d += AMX_DEPTH) {
        pack_rows(dout + d * n, n, rows - d, columns, tile);
        UNROLL for (long i = 0; i < 16; i++)
            pairs[i] = _mm512_load_si512(tile + i * AMX_DEPTH);
        transpose_16(pairs);
        UNROLL for (long i = 0; i < 16; i++)
            _mm512_storeu_si512(out + i * width + d, pairs[i]);
    }
}

int amx_grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp, float *dweight)
{
    const long panels = ceil_div(k, AMX_COLUMNS), width = round_up(rows, AMX_DEPTH);
    uint16_t *packed = alloc_halves(panels * AMX_COLUMNS * width);
    if (packed == NULL)
        return OUT_OF_MEMORY;
    int status = OK;
#pragma omp parallel num_threads(num_threads) reduction(| : status)
    {
        uint16_t *columns = alloc_halves(CHUNK * width);
        status = columns == NULL ? OUT_OF_MEMORY : OK;
        amx_begin();
#pragma omp for schedule(static)
        for (long p = 0; p < panels; p++)
            pack_columns(p, k, rows, inp, 0, packed);
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < ceil_div(n, CHUNK); chunk++) {
            const long first = chunk * CHUNK, m = min_long(CHUNK, n - first);
            if (columns == NULL)
                continue;
            for (long i = 0; i < m; i += AMX_ROWS)
                round_columns(rows, n, min_long(16, n - first - i), dout + first + i, columns + i * width);
            amx_gemm(m, k, rows, columns, packed, dweight + first * k, k, 0);
        }
        amx_end();
        free(columns);
    }
    free(packed);
    return status;
}

#else

int amx_available(int num_threads) { return NO_AMX; }

void amx_begin(void) {}

void amx_end(void) {}

void amx_round(long rows, long k, const float *inp, long stride, uint16_t *out) {}

void amx_gemm(long m, long n, long depth, const uint16_t *a, const uint16_t *b, float *c, long c_stride, int add) {}

int amx_pack(int num_threads, long n, long depth, const float *matrix, int transposed, uint16_t *out) { return NO_AMX; }

int amx_matmul(int num_threads, long rows, long n, long depth, const float *inp, const uint16_t *packed, float *out, int add)
{
    return NO_AMX;
}

int amx_grad_weight(int num_threads, long rows, long n, long k, const float *dout, const float *inp, float *dweight)
{
    return NO_AMX;
}

#endif
