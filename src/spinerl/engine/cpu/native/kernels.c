/* Loops that torch has no single operator for, in float32, for any processor the compiler knows.
 *
 * spinerl.engine.cpu.kernels compiles this file on the machine it runs on and is the only caller; it says what each
 * function computes.  A row is computed by one thread from start to end, and sums over rows are made of a fixed number
 * of parts, so that results depend neither on the number of threads nor on their timing.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
typedef float lanes __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef float half_lanes __attribute__((vector_size(32)));
typedef float loose __attribute__((vector_size(64), aligned(4), may_alias));
#define UNROLLED _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

INLINE lanes load(const float *at) { return *(const loose *)at; }
INLINE void store(float *at, lanes x) { *(loose *)at = x; }
INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE lanes all(float x) { return (lanes){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

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

/* exp(x) to 2e-7 of itself, for x up to 88; under -87.3 what it is there, the smallest normal number. */
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

INLINE lanes sigmoid(lanes x) { return 1.0f / (1.0f + exponential(-larger(x, all(-87.3f)))); }

/* ---- norms: y = w * x / sqrt(mean(x^2) + eps) for rows of `width` numbers ----
 *
 * Where `kept` is given, x is the sum of x and of the rows `places` of kept.
 */

INLINE lanes plus(const float *x, const float *more, long i) { return more ? load(x + i) + load(more + i) : load(x + i); }
INLINE float plus_one(const float *x, const float *more, long i) { return more ? x[i] + more[i] : x[i]; }
INLINE const float *kept_row(const float *kept, const int64_t *places, long row, long width)
{
    return kept ? kept + places[row] * width : NULL;
}

INLINE float inverse_root(const float *x, const float *more, long width, float eps)
{
    lanes squares = {0};
    long i = 0;
    for (; i + LANES <= width; i += LANES)
        squares += plus(x, more, i) * plus(x, more, i);
    float total = sum_of(squares);
    for (; i < width; i++)
        total += plus_one(x, more, i) * plus_one(x, more, i);
    return 1.0f / sqrtf(total / (float)width + eps);
}

void norm_forward(long rows, long width, const float *x, const int64_t *places, const float *kept, const float *w,
                  float eps, float *y, float *inverse)
{
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * width, *more = kept_row(kept, places, row, width);
        float *to = y + row * width;
        float scale = inverse_root(from, more, width, eps);
        if (inverse)
            inverse[row] = scale;
        long i = 0;
        for (; i + LANES <= width; i += LANES)
            store(to + i, load(w + i) * (plus(from, more, i) * scale));
        for (; i < width; i++)
            to[i] = w[i] * (plus_one(from, more, i) * scale);
    }
}

/* by_x of a row, with `beside` added to it where that is given; slopes of w are added to sums.  by_x may be slope. */
INLINE void norm_row_back(long width, const float *x, const float *more, const float *w, float scale, const float *slope,
                          const float *beside, float *by_x, float *sums)
{
    lanes dots = {0};
    long i = 0;
    for (; i + LANES <= width; i += LANES) {
        lanes product = load(slope + i) * plus(x, more, i);
        dots += product * load(w + i);
        store(sums + i, load(sums + i) + product * scale);
    }
    float dot = sum_of(dots);
    for (; i < width; i++) {
        float product = slope[i] * plus_one(x, more, i);
        dot += product * w[i];
        sums[i] += product * scale;
    }
    const float back = dot * scale * scale * scale / (float)width;
    for (i = 0; i + LANES <= width; i += LANES) {
        lanes found = load(slope + i) * load(w + i) * scale - plus(x, more, i) * back;
        store(by_x + i, beside ? load(beside + i) + found : found);
    }
    for (; i < width; i++) {
        float found = slope[i] * w[i] * scale - plus_one(x, more, i) * back;
        by_x[i] = beside ? beside[i] + found : found;
    }
}

/* by_x of each row, with `residual` added to it where that is given; by_w as `parts` sums over rows, (parts, width),
 * which the caller has set to 0 and adds up. */
void norm_backward(long rows, long width, const float *x, const int64_t *places, const float *kept, const float *w,
                   const float *inverse, const float *slope, const float *residual, float *by_x, float *by_w, long parts)
{
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long part = 0; part < parts; part++) {
        float *sums = by_w + part * width;
        for (long row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
            const float *from = x + row * width, *more = kept_row(kept, places, row, width), *g = slope + row * width;
            norm_row_back(width, from, more, w, inverse[row], g, residual ? residual + row * width : NULL,
                          by_x + row * width, sums);
        }
    }
}

/* y = x + a + b, of which a and b are the rows `places` of larger matrices. */
void add_at(long rows, long width, const int64_t *places, const float *x, const float *a, const float *b, float *y)
{
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const float *from = x + row * width, *p = a + places[row] * width, *q = b + places[row] * width;
        float *to = y + row * width;
        long i = 0;
        for (; i + LANES <= width; i += LANES)
            store(to + i, load(from + i) + load(p + i) + load(q + i));
        for (; i < width; i++)
            to[i] = from[i] + p[i] + q[i];
    }
}

/* ---- gates: y = silu(gate) * up ---- */

INLINE void copy_in(float *to, const float *from, long count) { memcpy(to, from, (size_t)count * sizeof(float)); }

INLINE void gate_row(long size, const float *gate, const float *up, float *y)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        store(y + i, load(gate + i) * sigmoid(load(gate + i)) * load(up + i));
    if (i < size) {
        float a[LANES] = {0}, b[LANES] = {0}, c[LANES];
        copy_in(a, gate + i, size - i);
        copy_in(b, up + i, size - i);
        store(c, load(a) * sigmoid(load(a)) * load(b));
        copy_in(y + i, c, size - i);
    }
}

/* y too, unless that is NULL. */
INLINE void gate_slopes(const float *gate, const float *up, const float *slope, float *by_gate, float *by_up, float *y)
{
    lanes g = load(gate), u = load(up), d = load(slope), s = sigmoid(g);
    if (y)
        store(y, g * s * u);
    store(by_up, d * g * s);
    store(by_gate, d * u * s * (1.0f + g * (1.0f - s)));
}

INLINE void gate_row_back(long size, const float *gate, const float *up, const float *slope, float *by_gate,
                          float *by_up, float *y)
{
    long i = 0;
    for (; i + LANES <= size; i += LANES)
        gate_slopes(gate + i, up + i, slope + i, by_gate + i, by_up + i, y ? y + i : NULL);
    if (i < size) {
        float in[3][LANES] = {{0}}, out[3][LANES];
        copy_in(in[0], gate + i, size - i);
        copy_in(in[1], up + i, size - i);
        copy_in(in[2], slope + i, size - i);
        gate_slopes(in[0], in[1], in[2], out[0], out[1], out[2]);
        copy_in(by_gate + i, out[0], size - i);
        copy_in(by_up + i, out[1], size - i);
        if (y)
            copy_in(y + i, out[2], size - i);
    }
}

#define STRETCH 4096 /* numbers that a thread takes at a time */

void gate_forward(long size, const float *gate, const float *up, float *y)
{
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long i = 0; i < size; i += STRETCH)
        gate_row(size - i < STRETCH ? size - i : STRETCH, gate + i, up + i, y + i);
}

void gate_backward(long size, const float *gate, const float *up, const float *slope, float *by_gate, float *by_up)
{
#pragma omp parallel for schedule(static) if (size > 16384)
    for (long i = 0; i < size; i += STRETCH)
        gate_row_back(size - i < STRETCH ? size - i : STRETCH, gate + i, up + i, slope + i, by_gate + i, by_up + i, NULL);
}

/* y and the slopes for rows whose gates and ups lie in the rows `places` of larger matrices. */
void gate_both_at(long rows, long width, const int64_t *places, const float *gate, const float *up, const float *slope,
                  float *y, float *by_gate, float *by_up)
{
#pragma omp parallel for schedule(static) if (rows * width > 16384)
    for (long row = 0; row < rows; row++) {
        const float *g = gate + places[row] * width, *u = up + places[row] * width;
        gate_row_back(width, g, u, slope + row * width, by_gate + row * width, by_up + row * width, y + row * width);
    }
}

/* ---- rotations: halves (a, b) of each head to (a cos - b sin, b cos + a sin), or the transpose of that ---- */

/* A head's norm, if it has one, and its rotation: y, which may be x. */
INLINE void turn(const float *x, const float *w, float eps, const float *c, const float *s, long width, float *y)
{
    const long half = width / 2;
    const float scale = w ? inverse_root(x, NULL, width, eps) : 1.0f;
    long i = 0;
    for (; i + LANES <= half; i += LANES) {
        lanes a = load(x + i), b = load(x + half + i);
        if (w)
            a = load(w + i) * (a * scale), b = load(w + half + i) * (b * scale);
        store(y + i, a * load(c + i) - b * load(s + i));
        store(y + half + i, b * load(c + half + i) + a * load(s + half + i));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[half + i];
        if (w)
            a = w[i] * (a * scale), b = w[half + i] * (b * scale);
        y[i] = a * c[i] - b * s[i];
        y[half + i] = b * c[half + i] + a * s[half + i];
    }
}

/* Its slopes, from those of y; those of w are added to by_w. */
INLINE void turn_back(const float *x, const float *w, float eps, const float *c, const float *s, long width,
                      const float *slope, float *by_x, float *by_w)
{
    const long half = width / 2;
    long i = 0;
    for (; i + LANES <= half; i += LANES) {
        lanes a = load(slope + i), b = load(slope + half + i);
        store(by_x + i, a * load(c + i) + b * load(s + half + i));
        store(by_x + half + i, b * load(c + half + i) - a * load(s + i));
    }
    for (; i < half; i++) {
        float a = slope[i], b = slope[half + i];
        by_x[i] = a * c[i] + b * s[half + i];
        by_x[half + i] = b * c[half + i] - a * s[i];
    }
    if (w)
        norm_row_back(width, x, NULL, w, inverse_root(x, NULL, width, eps), by_x, NULL, by_x, by_w);
}

void rotate(long tokens, long heads, long width, const float *x, const float *cosine, const float *sine, int back,
            float *y)
{
#pragma omp parallel for schedule(static) if (tokens * heads * width > 16384)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++) {
            const float *c = cosine + token * width, *s = sine + token * width;
            const long at = (token * heads + head) * width;
            if (back)
                turn_back(NULL, NULL, 0.0f, c, s, width, x + at, y + at, NULL);
            else
                turn(x + at, NULL, 0.0f, c, s, width, y + at);
        }
}

/* y (tokens, heads, width): `turn` of the rows `places` of a larger matrix; angles (tokens, width). */
void turn_at(long tokens, long heads, long width, const int64_t *places, const float *kept, const float *w, float eps,
             const float *cosine, const float *sine, float *y)
{
#pragma omp parallel for schedule(static) if (tokens * heads * width > 16384)
    for (long token = 0; token < tokens; token++)
        for (long head = 0; head < heads; head++)
            turn(kept + (places[token] * heads + head) * width, w, eps, cosine + token * width, sine + token * width,
                 width, y + (token * heads + head) * width);
}

/* by_w as for `norm_backward`. */
void turn_back_at(long tokens, long heads, long width, const int64_t *places, const float *kept, const float *w,
                  float eps, const float *cosine, const float *sine, const float *slope, float *by_x, float *by_w,
                  long parts)
{
#pragma omp parallel for schedule(static) if (tokens * heads * width > 16384)
    for (long part = 0; part < parts; part++)
        for (long token = tokens * part / parts; token < tokens * (part + 1) / parts; token++)
            for (long head = 0; head < heads; head++)
                turn_back(kept + (places[token] * heads + head) * width, w, eps, cosine + token * width,
                          sine + token * width, width, slope + (token * heads + head) * width,
                          by_x + (token * heads + head) * width, by_w + part * width);
}

/* ---- drawing a token from the logits of each row ---- */

#define SPAN 128 /* neighbouring tokens whose weights are added up before the drawn one is looked for */

INLINE lanes weights_of(lanes scores, float top, lanes *rest)
{
    lanes x = scores - top;
    *rest = larger(x, all(-1e4f)); /* 0 times minus infinity is not a number */
    lanes w = exponential(x);
    return (lanes)((ints)w & (x > all(-87.0f)));
}

INLINE lanes some_scores(const float *logits, long left, float factor)
{
    if (left >= LANES)
        return load(logits) * factor;
    float tail[LANES];
    for (long i = 0; i < LANES; i++)
        tail[i] = i < left ? logits[i] : -INFINITY;
    return load(tail) * factor;
}

/* Of softmax(logits * factor), each row's logits `apart` from the next row's: the first token whose cumulative
 * probability exceeds the row's number in [0, 1), its log-probability, and the entropy.  1 where memory is short. */
int draw(long rows, long vocabulary, long apart, const float *logits, float factor, const float *numbers,
         int64_t *tokens, float *logprobs, float *entropies)
{
    const long spans = (vocabulary + SPAN - 1) / SPAN;
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed) if (rows * vocabulary > 16384)
    for (long row = 0; row < rows; row++) {
        const float *from = logits + row * apart;
        float *sums = malloc((size_t)spans * sizeof(float));
        failed |= sums == NULL;
        if (sums == NULL)
            continue;
        lanes most = all(-INFINITY);
        for (long i = 0; i < vocabulary; i += LANES)
            most = larger(some_scores(from + i, vocabulary - i, factor), most);
        const float top = max_of(most);
        double total = 0.0, mean = 0.0;
        for (long span = 0; span < spans; span++) {
            lanes sum = {0}, weighted = {0}, rest;
            for (long i = span * SPAN; i < least(vocabulary, (span + 1) * SPAN); i += LANES) {
                lanes w = weights_of(some_scores(from + i, vocabulary - i, factor), top, &rest);
                sum += w;
                weighted += w * rest;
            }
            total += sums[span] = sum_of(sum);
            mean += sum_of(weighted);
        }
        const double wanted = numbers[row] * total;
        double before = 0.0;
        long token = -1, last = 0;
        for (long span = 0; span < spans && token < 0; span++) {
            if (!(before + sums[span] > wanted) && span + 1 < spans) {
                before += sums[span];
                continue;
            }
            float weights[SPAN] = {0};
            lanes rest;
            const long first = span * SPAN, count = least(SPAN, vocabulary - first);
            for (long i = 0; i < count; i += LANES)
                store(weights + i, weights_of(some_scores(from + first + i, vocabulary - first - i, factor), top, &rest));
            for (long i = 0; i < count && token < 0; i++) {
                before += weights[i];
                if (weights[i] > 0.0f)
                    last = first + i; /* rounding may leave the sum just short of the number */
                if (weights[i] > 0.0f && before > wanted)
                    token = first + i;
            }
        }
        token = token < 0 ? last : token;
        tokens[row] = token;
        logprobs[row] = (float)((double)(from[token] * factor) - top - log(total));
        entropies[row] = (float)(log(total) - mean / total);
        free(sums);
    }
    return failed;
}

/* ---- products of small blocks: c (m, n) = or += a (m, depth) times b (depth, n), n a multiple of 16 ---- */

#define AHEAD 16 /* rows of b that are fetched before they are wanted */
/* ROWS of a block whose sums are kept in registers, VECTORS of 16 numbers in each, and the bytes of a register: compilers
 * leave wider vectors than the processor has in memory. */
#if defined(__AVX512F__)
#define ROWS 6
#define VECTORS 4
#define REGISTER 64
#elif defined(__AVX__)
#define ROWS 6
#define VECTORS 1
#define REGISTER 32
#else
#define ROWS 3
#define VECTORS 1
#define REGISTER 16
#endif
typedef float part __attribute__((vector_size(REGISTER)));
typedef float loose_part __attribute__((vector_size(REGISTER), aligned(4), may_alias));
#define PART (REGISTER / 4)          /* numbers in a register */
#define PARTS (LANES / PART)         /* registers in a vector */

#define PANEL (VECTORS * LANES) /* columns of a packed matrix that lie together */

/* Whether `weight_slope` and `slopes_back` are worth their while: with narrower registers, libraries do better. */
int has_wide_registers(void) { return REGISTER >= 32; }

/* Memory that will be wanted next: stretches of it, taken line by line beside products, which leave memory idle. */
typedef struct {
    const char *at, *end;                             /* of the present stretch */
    long number, count;                               /* of the stretches taken, and of all */
    const float **starts;
    long *sizes;                                      /* in numbers */
} errands;

/* Up to `most` lines from here on are wanted, and taken care of. */
INLINE const char *next_lines(errands *some, long most, long *lines)
{
    while (some->at >= some->end) {
        if (some->number == some->count)
            return *lines = 0, NULL;
        some->at = (const char *)some->starts[some->number];
        some->end = some->at + some->sizes[some->number++] * sizeof(float);
    }
    const char *at = some->at;
    const long left = (some->end - at + 63) / 64;
    *lines = left < most ? left : most;
    some->at = at + *lines * 64;
    return at;
}

/* One number of each row's of a, times a row of b. */
INLINE void add_outer(const int rows, const int vectors, const float *a, long a_row, const float *b,
                      part (*sums)[VECTORS * PARTS])
{
    part from[VECTORS * PARTS];
    UNROLLED for (int v = 0; v < vectors * PARTS; v++)
        from[v] = *(const loose_part *)(b + v * PART);
    UNROLLED for (int i = 0; i < rows; i++) {
        const float one = a[i * a_row];
        UNROLLED for (int v = 0; v < vectors * PARTS; v++)
            sums[i][v] += one * from[v];
    }
}

/* `ahead`: whether to fetch b; `some`, or NULL: what else to fetch. */
INLINE void block(const int rows, const int vectors, long depth, const float *a, long a_row, long a_depth,
                  const float *b, long b_depth, float *c, long c_row, const int add, const int ahead, errands *some)
{
    part sums[ROWS][VECTORS * PARTS];
    UNROLLED for (int i = 0; i < rows; i++)
        UNROLLED for (int v = 0; v < vectors * PARTS; v++)
            sums[i][v] = add ? (part)*(const loose_part *)(c + i * c_row + v * PART) : (part){0};
    long lines, d = 0;
    for (const char *wanted; some && d < depth && (wanted = next_lines(some, depth - d, &lines));)
        for (const long stop = d + lines; d < stop; d++, wanted += 64) {
            __builtin_prefetch(wanted, 0, 2);
            if (ahead)
                UNROLLED for (int v = 0; v < vectors; v++)
                    __builtin_prefetch(b + (d + AHEAD) * b_depth + v * LANES);
            add_outer(rows, vectors, a + d * a_depth, a_row, b + d * b_depth, sums);
        }
    for (; d < depth; d++) {
        if (ahead)
            UNROLLED for (int v = 0; v < vectors; v++)
                __builtin_prefetch(b + (d + AHEAD) * b_depth + v * LANES);
        add_outer(rows, vectors, a + d * a_depth, a_row, b + d * b_depth, sums);
    }
    UNROLLED for (int i = 0; i < rows; i++)
        UNROLLED for (int v = 0; v < vectors * PARTS; v++)
            *(loose_part *)(c + i * c_row + v * PART) = sums[i][v];
}

INLINE void blocks_below(const int vectors, long m, long depth, const float *a, long a_row, long a_depth,
                         const float *b, long b_depth, float *c, long c_row, const int add, errands *some)
{
    long i = 0;
    if (vectors == VECTORS && m >= ROWS) { /* the first block fetches b for the others */
        block(ROWS, vectors, depth, a, a_row, a_depth, b, b_depth, c, c_row, add, 1, some);
        i = ROWS;
    }
    for (; i + ROWS <= m; i += ROWS)
        block(ROWS, vectors, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add, 0, some);
    for (; i + 2 <= m; i += 2)
        block(2, vectors, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add, 0, NULL);
    for (; i < m; i++)
        block(1, vectors, depth, a + i * a_row, a_row, a_depth, b, b_depth, c + i * c_row, c_row, add, 0, NULL);
}

INLINE void multiply(long m, long n, long depth, const float *a, long a_row, long a_depth, const float *b,
                     long b_depth, float *c, long c_row, const int add, errands *some)
{
    long j = 0;
    for (; j + VECTORS * LANES <= n; j += VECTORS * LANES)
        blocks_below(VECTORS, m, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row, add, some);
    for (; j + LANES <= n; j += LANES)
        blocks_below(1, m, depth, a, a_row, a_depth, b + j, b_depth, c + j, c_row, add, NULL);
}

static void product(long m, long n, long depth, const float *a, long a_row, long a_depth, const float *b, long b_depth,
                    float *c, long c_row)
{
    multiply(m, n, depth, a, a_row, a_depth, b, b_depth, c, c_row, 0, NULL);
}

static void add_product(long m, long n, long depth, const float *a, long a_row, long a_depth, const float *b,
                        long b_depth, float *c, long c_row)
{
    multiply(m, n, depth, a, a_row, a_depth, b, b_depth, c, c_row, 1, NULL);
}

/* Scores of keys to weights, in place: those of the prompt and the row's own, so many of them seen, with room up to
 * multiples of 16.  Gives the logarithm of the weights' sum, and what to multiply the weights by for a sum of 1. */
INLINE float weigh(float *prompt, long length, long columns, float *own, long seen, long own_columns, float *share)
{
    for (long j = length; j < columns; j++)
        prompt[j] = -1e30f;
    for (long j = seen; j < own_columns; j++)
        own[j] = -1e30f;
    lanes top = load(own), sums = {0};
    for (long j = 0; j < columns; j += LANES)
        top = larger(load(prompt + j), top);
    for (long j = 0; j < own_columns; j += LANES)
        top = larger(load(own + j), top);
    const float highest = max_of(top);
    for (long j = 0; j < columns; j += LANES) {
        lanes weight = exponential(load(prompt + j) - highest);
        sums += weight;
        store(prompt + j, weight);
    }
    for (long j = 0; j < own_columns; j += LANES) {
        lanes weight = exponential(load(own + j) - highest);
        sums += weight;
        store(own + j, weight);
    }
    const float sum = sum_of(sums);
    *share = 1.0f / sum;
    return highest + logf(sum);
}

/* ---- attention of one new token per row: to its question's prompt and to the row's own earlier tokens ---- */

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

/* Sums of 16 vectors, in their order: halves, quarters, ... of two are added up in one. */
#define MERGE(a, b, first, second) (__builtin_shufflevector(a, b, first) + __builtin_shufflevector(a, b, second))
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31

INLINE lanes sums_of(const lanes *x)
{
    lanes by8[8], by4[4], by2[2];
    UNROLLED for (int i = 0; i < 8; i++)
        by8[i] = MERGE(x[2 * i], x[2 * i + 1], LOW8, HIGH8);
    UNROLLED for (int i = 0; i < 4; i++)
        by4[i] = MERGE(by8[2 * i], by8[2 * i + 1], LOW4, HIGH4);
    UNROLLED for (int i = 0; i < 2; i++)
        by2[i] = MERGE(by4[2 * i], by4[2 * i + 1], LOW2, HIGH2);
    return MERGE(by2[0], by2[1], EVEN, ODD);
}

/* scores (N queries, keys) of keys (keys, parts * 16) one after the other; N of 1, 2 or 4.  Keys up to a multiple of 16
 * are read, and scored. */
INLINE void score_own(const int n, const int parts, const float *queries, const float *keys, long count, float *scores,
                      long score_stride)
{
    const long width = parts * LANES;
    const int at_once = LANES / n;
    for (long j = 0; j < count; j += at_once) {
        lanes sums[LANES] = {{0}};
        for (int p = 0; p < parts; p++)
            UNROLLED for (int i = 0; i < at_once; i++) {
                lanes key = load(keys + (j + i) * width + p * LANES);
                UNROLLED for (int q = 0; q < n; q++)
                    sums[q * at_once + i] += key * load(queries + q * width + p * LANES);
            }
        lanes found = sums_of(sums);
        UNROLLED for (int q = 0; q < n; q++)
            memcpy(scores + q * score_stride + j, (const float *)&found + q * at_once, at_once * sizeof(float));
    }
}

/* In lots of 4, 2 and 1 queries, as registers allow. */
#define IN_LOTS(count, most, call)                                                                                     \
    do {                                                                                                               \
        long q = 0;                                                                                                    \
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
    long block_size, own;               /* the rows' own tokens: so many, in blocks of (rows, kv_heads, block_size, width) */
    const float *const *key_blocks, *const *value_blocks;
    const float *prompt_keys;           /* (questions, kv_heads, padded / PANEL, width, PANEL): as `pack` lays them */
    const float *prompt_values;         /* (questions, kv_heads, longest, width) */
    long padded, longest;               /* padded: a multiple of PANEL */
    const int64_t *lengths;             /* (questions) of the prompts */
    long tasks;                         /* a task: some rows of one question, for one head of keys */
    const int64_t *question, *first, *count; /* (tasks) rows order[first] to order[first + count - 1] */
    const int64_t *order;               /* (rows) */
    float *outputs, *totals;            /* (rows, heads, width), (rows, heads): logarithm of the weights' sum */
    int in_order;                       /* whether queries, outputs and totals begin with row order[base] and follow */
    long base;                          /* `order`, rather than the rows' numbers */
} decoding;

/* Where the queries of a task's row stand. */
INLINE long place(const decoding *job, long task, long row)
{
    long at = job->first[task] + row;
    return job->in_order ? at - job->base : job->order[at];
}

INLINE void decode_task(const decoding *job, const int parts, long task, long head, float *scratch)
{
    const int most = parts >= 16 ? 1 : parts >= 8 ? 2 : 4;
    const long width = parts * LANES, own = job->own, group = job->heads / job->kv_heads;
    const long rows = job->count[task], queries = rows * group, question = job->question[task];
    const int64_t *order = job->order + job->first[task];
    const long own_padded = (own + LANES - 1) / LANES * LANES, stride = job->padded + own_padded;
    const long length = job->lengths[question];
    float *query = scratch, *scores = query + queries * width, *output = scores + queries * stride;
    float *shares = output + queries * width;

    for (long r = 0; r < rows; r++) {
        const float *from = job->queries + (place(job, task, r) * job->heads + head * group) * width;
        for (long i = 0; i < group * width; i += LANES)
            store(query + r * group * width + i, load(from + i) * job->scale);
    }
    const float *keys = job->prompt_keys + (question * job->kv_heads + head) * width * job->padded;
    for (long j = 0; j < length; j += PANEL) {
        const float *some = keys + j * width;
        if (length - j > PANEL / 2)
            blocks_below(VECTORS, queries, width, query, width, 1, some, PANEL, scores + j, stride, 0, NULL);
        else
            for (long i = 0; i < length - j; i += LANES)
                blocks_below(1, queries, width, query, width, 1, some + i, PANEL, scores + j + i, stride, 0, NULL);
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
        job->totals[place(job, task, q / group) * job->heads + head * group + q % group] =
            weigh(row, length, columns, its_own, own, own_padded, shares + q);
    }
    memset(output, 0, (size_t)(queries * width) * sizeof(float));
    const float *values = job->prompt_values + (question * job->kv_heads + head) * job->longest * width;
    add_product(queries, width, length, scores, stride, 1, values, width, output, width);
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
        float *at = job->outputs + (place(job, task, r) * job->heads + head * group) * width;
        for (long i = 0; i < group * width; i += LANES)
            store(at + i, load(to + i) * shares[r * group + i / width]);
    }
}

static void attend_task(const decoding *job, long width, long task, long head, float *scratch)
{
    switch (width) {
    case 16: decode_task(job, 1, task, head, scratch); break;
    case 32: decode_task(job, 2, task, head, scratch); break;
    case 64: decode_task(job, 4, task, head, scratch); break;
    case 128: decode_task(job, 8, task, head, scratch); break;
    case 256: decode_task(job, 16, task, head, scratch); break;
    }
}

/* Numbers that a task needs room for, its rows being at most `most_rows`. */
INLINE long task_size(const decoding *job, long width, long most_rows)
{
    const long stride = job->padded + (job->own + LANES - 1) / LANES * LANES;
    return most_rows * (job->heads / job->kv_heads) * (2 * width + stride + 1);
}

static float *find_room(long count) { return aligned_alloc(64, ((size_t)count * sizeof(float) + 63) / 64 * 64); }

/* Returns 0, or 1 where memory is short.  The width is 16, 32, 64, 128 or 256. */
int decode_attention(const decoding *job, long width, long most_rows)
{
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *scratch = find_room(task_size(job, width, most_rows));
        failed = scratch == NULL;
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < job->tasks * job->kv_heads; i++)
            if (!failed)
                attend_task(job, width, i / job->kv_heads, i % job->kv_heads, scratch);
        free(scratch);
    }
    return failed;
}

/* ---- slopes of weights ---- */

#define DEPTH 256 /* rows that are summed up at a time, and the most of a slope's that one thread then has at hand */
#define DOWN 256

/* slope (n, k) = slopes (rows, n), transposed, times states (rows, k), k a multiple of 16.  1 where memory is short. */
int weight_slope(long rows, long n, long k, const float *slopes, const float *states, float *slope)
{
    int failed = 0;
    long threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    long parts = threads * ((n + threads * DOWN - 1) / (threads * DOWN));
    long down = (n + parts - 1) / parts;
    down = (down + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel for schedule(static) reduction(| : failed)
    for (long part = 0; part < parts; part++) {
        const long first = part * down, m = least(down, n - first);
        const float *starts[DEPTH + 1];
        long sizes[DEPTH + 1];
        float *packed = m > 0 ? find_room(DEPTH * m) : NULL;
        failed |= m > 0 && packed == NULL;
        for (long row = 0; row < rows && packed != NULL; row += DEPTH) {
            const long depth = least(DEPTH, rows - row), next = least(DEPTH, rows - row - depth);
            const float *b = states + row * k;
            float *c = slope + first * k;
            errands some = {.count = next + (next > 0), .starts = starts, .sizes = sizes};
            for (long d = 0; d < next; d++)
                starts[d] = slopes + (row + depth + d) * n + first, sizes[d] = m;
            starts[next] = b + depth * k, sizes[next] = next * k;
            for (long d = 0; d < depth; d++)
                memcpy(packed + d * m, slopes + (row + d) * n + first, (size_t)m * sizeof(float));
            if (row)
                multiply(m, k, depth, packed, 1, m, b, k, c, k, 1, &some);
            else
                multiply(m, k, depth, packed, 1, m, b, k, c, k, 0, &some);
        }
        free(packed);
    }
    return failed;
}

#define CHUNK 96 /* rows that a thread takes through all panels of a matrix */

/* out (rows, n) = or += slopes (rows, k) times weight (k, n), n a multiple of 16.  1 where memory is short. */
int slopes_back(long rows, long k, long n, const float *slopes, const float *weight, float *out, int add)
{
    const long panels = (n + PANEL - 1) / PANEL;
    float *packed = find_room(panels * k * PANEL);
    if (packed == NULL)
        return 1;
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long i = 0; i < panels * k; i++) {
            long panel = i / k, row = i % k;
            memcpy(packed + i * PANEL, weight + row * n + panel * PANEL,
                   (size_t)least(PANEL, n - panel * PANEL) * sizeof(float));
        }
#pragma omp for schedule(dynamic, 1)
        for (long chunk = 0; chunk < (rows + CHUNK - 1) / CHUNK; chunk++) {
            const long m = least(CHUNK, rows - chunk * CHUNK);
            const float *from = slopes + chunk * CHUNK * k;
            for (long p = 0; p < panels; p++) {
                float *to = out + chunk * CHUNK * n + p * PANEL;
                const long columns = least(PANEL, n - p * PANEL);
                const float *some = packed + p * k * PANEL;
                if (add)
                    multiply(m, columns, k, from, k, 1, some, PANEL, to, n, 1, NULL);
                else
                    multiply(m, columns, k, from, k, 1, some, PANEL, to, n, 0, NULL);
            }
        }
    }
    free(packed);
    return 0;
}

/* ---- attention of finished responses to their question's prompt and, under the causal mask, to themselves ---- */

#define TILE 64 /* queries and keys that meet at once */

typedef struct {
    const int64_t *starts;                         /* (rows + 1) row i has the tokens starts[i] to starts[i + 1] - 1 */
    long longest_row, heads, kv_heads, width;      /* width a multiple of 16 */
    const float *queries, *keys, *values;          /* (tokens, heads or kv_heads, width) */
    const float *prompt_keys, *prompt_values;      /* (questions, kv_heads, longest, width), with these strides: */
    long of_question, of_head, of_token;
    const int64_t *lengths;                        /* (questions) of the prompts */
    long longest;
    float scale;
    long tasks, questions;                         /* a task: some rows of one question */
    const int64_t *question, *first, *count;       /* (tasks) rows first to first + count - 1 */
    float *outputs, *totals;                       /* (tokens, heads, width), (tokens, heads) */
    const float *slopes;                           /* from here on: backward.  Of outputs */
    float *by_queries, *by_keys, *by_values;       /* as queries, keys, values */
    float *by_prompt_keys, *by_prompt_values;      /* (questions, kv_heads, longest, width), in one piece each */
    float *parts;                                  /* (tasks, kv_heads, 2, padded longest, width): room to work in */
} continuing;

INLINE long padded(long n) { return (n + TILE - 1) / TILE * TILE; }

/* to (width, stride) = the first `count` of from (count, width), whose rows lie `apart`, transposed; 0 beyond. */
static void transpose(const float *from, long apart, long count, long width, float *to, long stride)
{
    for (long d = 0; d < width; d++) {
        long i = 0;
        for (; i < count; i++)
            to[d * stride + i] = from[i * apart + d];
        for (; i < stride; i++)
            to[d * stride + i] = 0.0f;
    }
}

/* Some of a row's tokens (`which`, or the first), for one head of keys: (tokens * group, width) from (..., heads, width),
 * times a factor; and back. */
static void gather(const float *from, const long *which, long tokens, long heads, long group, long width, float factor,
                   float *to)
{
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < group * width; i += LANES)
            store(to + t * group * width + i, load(from + (which ? which[t] : t) * heads * width + i) * factor);
}

static void scatter(const float *from, const long *which, long tokens, long heads, long group, long width, float factor,
                    float *to)
{
    for (long t = 0; t < tokens; t++)
        for (long i = 0; i < group * width; i += LANES)
            store(to + (which ? which[t] : t) * heads * width + i, load(from + t * group * width + i) * factor);
}

/* Which of a row's tokens have slopes other than 0, in order; how many they are. */
static long find_live(const float *slopes, long tokens, long heads, long group, long width, long *which)
{
    long count = 0;
    for (long t = 0; t < tokens; t++) {
        ints some = {0};
        for (long i = 0; i < group * width; i += LANES)
            some |= load(slopes + t * heads * width + i) != (lanes){0};
        int any = 0;
        for (int i = 0; i < LANES; i++)
            any |= some[i];
        which[count] = t;
        count += any != 0;
    }
    return count;
}

typedef struct {
    float *queries, *slopes, *by_queries, *outputs; /* (tokens * group, width) */
    float *totals, *dots;                           /* (tokens * group) */
    float *turned_keys, *turned_values;             /* of the prompt: (width, padded) */
    float *own_keys, *own_values;                   /* (width, padded) */
    float *by_own_keys, *by_own_values;             /* (padded, width) */
    float *weights, *scores;                        /* (TILE, all keys), or (TILE, TILE) twice */
    long *which;                                    /* (tokens) backward: those with slopes */
    const float **starts;                           /* (5 * tokens) errands for the next row */
    long *sizes;
    errands *some;
} room;

static float *take(float **from, long count)
{
    float *start = *from;
    *from += (count + LANES - 1) / LANES * LANES;
    return start;
}

static long room_size(const continuing *job)
{
    long tokens = job->longest_row, queries = tokens * (job->heads / job->kv_heads);
    long keys = padded(tokens), prompt = padded(job->longest);
    return queries * (4 * job->width + 2) + job->width * (4 * keys + 2 * prompt) + TILE * (keys + prompt + TILE) +
           22 * tokens + 19 * LANES;
}

static room arrange(const continuing *job, float *memory)
{
    long tokens = job->longest_row, queries = tokens * (job->heads / job->kv_heads);
    long keys = padded(tokens), prompt = padded(job->longest);
    room r;
    r.queries = take(&memory, queries * job->width);
    r.slopes = take(&memory, queries * job->width);
    r.by_queries = take(&memory, queries * job->width);
    r.outputs = take(&memory, queries * job->width);
    r.totals = take(&memory, queries);
    r.dots = take(&memory, queries);
    r.turned_keys = take(&memory, job->width * prompt);
    r.turned_values = take(&memory, job->width * prompt);
    r.own_keys = take(&memory, job->width * keys);
    r.own_values = take(&memory, job->width * keys);
    r.by_own_keys = take(&memory, job->width * keys);
    r.by_own_values = take(&memory, job->width * keys);
    r.weights = take(&memory, TILE * (keys + prompt));
    r.scores = take(&memory, TILE * TILE);
    r.which = (long *)take(&memory, 2 * tokens);
    r.starts = (const float **)take(&memory, 10 * tokens);
    r.sizes = (long *)take(&memory, 10 * tokens);
    return r;
}

static void attend_row(const continuing *job, long row, long question, long head, room r)
{
    const long group = job->heads / job->kv_heads, width = job->width;
    const long start = job->starts[row], tokens = job->starts[row + 1] - start;
    const long length = job->lengths[question], prompt = padded(job->longest), stride = prompt + padded(tokens);
    const float *values = job->prompt_values + question * job->of_question + head * job->of_head;
    const float *own_keys = job->keys + (start * job->kv_heads + head) * width;
    const float *own_values = job->values + (start * job->kv_heads + head) * width;
    const long apart = job->kv_heads * width, at = (start * job->heads + head * group) * width;
    gather(job->queries + at, NULL, tokens, job->heads, group, width, job->scale, r.queries);
    transpose(own_keys, apart, tokens, width, r.own_keys, padded(tokens));
    for (long m = 0; m < tokens * group; m += TILE) {
        long count = least(TILE, tokens * group - m), seen = (m + count - 1) / group + 1;
        long columns = (length + LANES - 1) / LANES * LANES, own = (seen + LANES - 1) / LANES * LANES;
        float *query = r.queries + m * width, *output = r.outputs + m * width;
        product(count, columns, width, query, width, 1, r.turned_keys, prompt, r.weights, stride);
        product(count, own, width, query, width, 1, r.own_keys, padded(tokens), r.weights + prompt, stride);
        for (long q = 0; q < count; q++) {
            float *to_prompt = r.weights + q * stride, *to_own = to_prompt + prompt;
            job->totals[(start + (m + q) / group) * job->heads + head * group + (m + q) % group] =
                weigh(to_prompt, length, columns, to_own, (m + q) / group + 1, own, r.dots + m + q);
        }
        product(count, width, length, r.weights, stride, 1, values, job->of_token, output, width);
        add_product(count, width, seen, r.weights + prompt, stride, 1, own_values, apart, output, width);
        for (long q = 0; q < count; q++)
            for (long d = 0; d < width; d += LANES)
                store(output + q * width + d, load(output + q * width + d) * r.dots[m + q]);
    }
    scatter(r.outputs, NULL, tokens, job->heads, group, width, 1.0f, job->outputs + at);
}

/* One tile of queries and n keys: the slopes of its queries, keys and values.  A token sees the keys up to its own, where
 * the first key is that of token `from`; all of them where that is negative. */
static void tile_back(const continuing *job, room r, long m, long count, long n, const float *turned_keys,
                      const float *turned_values, long stride, const float *keys, long apart, long from, float *by_keys,
                      float *by_values)
{
    const long width = job->width, group = job->heads / job->kv_heads;
    const long columns = (n + LANES - 1) / LANES * LANES;
    const float *query = r.queries + m * width, *slope = r.slopes + m * width;
    float *weights = r.weights, *scores = r.scores;
    multiply(count, columns, width, query, width, 1, turned_keys, stride, weights, TILE, 0, r.some);
    multiply(count, columns, width, slope, width, 1, turned_values, stride, scores, TILE, 0, r.some);
    for (long q = 0; q < count; q++) {
        lanes total = all(r.totals[m + q]), dot = all(r.dots[m + q]);
        float *weight = weights + q * TILE, *score = scores + q * TILE;
        for (long j = 0; j < columns; j += LANES) {
            lanes w = exponential(load(weight + j) - total);
            store(weight + j, w);
            store(score + j, w * (load(score + j) - dot));
        }
        for (long j = from < 0 ? n : least(n, r.which[(m + q) / group] - from + 1); j < columns; j++)
            weight[j] = score[j] = 0.0f;
    }
    add_product(count, width, n, scores, TILE, 1, keys, apart, r.by_queries + m * width, width);
    add_product(n, width, count, scores, 1, TILE, query, width, by_keys, width);
    add_product(n, width, count, weights, 1, TILE, slope, width, by_values, width);
}

/* What going back through a row will read of its tokens. */
static errands errands_for(const continuing *job, long row, long head, room r)
{
    const long group = job->heads / job->kv_heads, width = job->width;
    const float *asking[] = {job->slopes, job->queries, job->outputs}, *asked[] = {job->keys, job->values};
    long count = 0;
    for (long t = job->starts[row]; t < job->starts[row + 1]; t++) {
        for (int i = 0; i < 3; i++, count++)
            r.starts[count] = asking[i] + (t * job->heads + head * group) * width, r.sizes[count] = group * width;
        for (int i = 0; i < 2; i++, count++)
            r.starts[count] = asked[i] + (t * job->kv_heads + head) * width, r.sizes[count] = width;
    }
    return (errands){.count = count, .starts = r.starts, .sizes = r.sizes};
}

static void attend_row_back(const continuing *job, long row, long question, long head, room r, float *by_prompt)
{
    const long group = job->heads / job->kv_heads, width = job->width;
    const long start = job->starts[row], tokens = job->starts[row + 1] - start;
    const long length = job->lengths[question], prompt = padded(job->longest);
    const long apart = job->kv_heads * width, at = (start * job->heads + head * group) * width;
    const long own_at = (start * job->kv_heads + head) * width;
    const float *prompt_keys = job->prompt_keys + question * job->of_question + head * job->of_head;
    const long live = find_live(job->slopes + at, tokens, job->heads, group, width, r.which), queries = live * group;
    gather(job->queries + at, r.which, live, job->heads, group, width, job->scale, r.queries);
    gather(job->slopes + at, r.which, live, job->heads, group, width, 1.0f, r.slopes);
    gather(job->outputs + at, r.which, live, job->heads, group, width, 1.0f, r.outputs);
    for (long q = 0; q < queries; q++) {
        lanes dots = {0};
        for (long d = 0; d < width; d += LANES)
            dots += load(r.slopes + q * width + d) * load(r.outputs + q * width + d);
        r.dots[q] = sum_of(dots);
        r.totals[q] = job->totals[(start + r.which[q / group]) * job->heads + head * group + q % group];
    }
    memset(r.by_queries, 0, (size_t)(queries * width) * sizeof(float));
    transpose(job->keys + own_at, apart, tokens, width, r.own_keys, padded(tokens));
    transpose(job->values + own_at, apart, tokens, width, r.own_values, padded(tokens));
    memset(r.by_own_keys, 0, (size_t)(padded(tokens) * width) * sizeof(float));
    memset(r.by_own_values, 0, (size_t)(padded(tokens) * width) * sizeof(float));
    for (long j = 0; j < length; j += TILE)
        for (long m = 0; m < queries; m += TILE)
            tile_back(job, r, m, least(TILE, queries - m), least(TILE, length - j), r.turned_keys + j,
                      r.turned_values + j, prompt, prompt_keys + j * job->of_token, job->of_token, -1,
                      by_prompt + j * width, by_prompt + (prompt + j) * width);
    long first = 0;
    for (long j = 0; j < tokens; j += TILE) {
        while (first < live && r.which[first] < j) /* a tile of keys is seen from its first token on */
            first++;
        for (long m = first * group; m < queries; m += TILE) {
            const long count = least(TILE, queries - m), seen = r.which[(m + count - 1) / group] - j + 1;
            tile_back(job, r, m, count, least(TILE, seen), r.own_keys + j, r.own_values + j, padded(tokens),
                      job->keys + own_at + j * apart, apart, j, r.by_own_keys + j * width, r.by_own_values + j * width);
        }
    }
    if (live < tokens)
        for (long t = 0; t < tokens; t++)
            memset(job->by_queries + at + t * job->heads * width, 0, (size_t)(group * width) * sizeof(float));
    scatter(r.by_queries, r.which, live, job->heads, group, width, job->scale, job->by_queries + at);
    scatter(r.by_own_keys, NULL, tokens, job->kv_heads, 1, width, 1.0f, job->by_keys + own_at);
    scatter(r.by_own_values, NULL, tokens, job->kv_heads, 1, width, 1.0f, job->by_values + own_at);
}

/* Returns 0, or 1 where memory is short. */
int continue_prompts(const continuing *job, int back)
{
    int failed = 0;
    const long prompt = padded(job->longest);
#pragma omp parallel reduction(| : failed)
    {
        float *memory = find_room(room_size(job));
        failed = memory == NULL;
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < job->tasks * job->kv_heads; i++) {
            if (failed)
                continue;
            long task = i / job->kv_heads, head = i % job->kv_heads, question = job->question[task];
            room r = arrange(job, memory);
            const long from = question * job->of_question + head * job->of_head, length = job->lengths[question];
            float *part = job->parts + i * 2 * prompt * job->width;
            transpose(job->prompt_keys + from, job->of_token, length, job->width, r.turned_keys, prompt);
            if (back) {
                transpose(job->prompt_values + from, job->of_token, length, job->width, r.turned_values, prompt);
                memset(part, 0, (size_t)(2 * prompt * job->width) * sizeof(float));
            }
            for (long row = job->first[task], end = row + job->count[task]; row < end; row++) {
                errands some = {0};
                r.some = &some;
                if (back && row + 1 < end)
                    some = errands_for(job, row + 1, head, r);
                if (back)
                    attend_row_back(job, row, question, head, r, part);
                else
                    attend_row(job, row, question, head, r);
            }
        }
        free(memory);
        if (back) {
#pragma omp for schedule(static)
            for (long i = 0; i < job->questions * job->kv_heads; i++) {
                long question = i / job->kv_heads, head = i % job->kv_heads, size = job->longest * job->width;
                float *by_keys = job->by_prompt_keys + i * size, *by_values = job->by_prompt_values + i * size;
                memset(by_keys, 0, (size_t)size * sizeof(float));
                memset(by_values, 0, (size_t)size * sizeof(float));
                for (long task = 0; task < job->tasks; task++) {
                    if (job->question[task] != question)
                        continue;
                    const float *part = job->parts + (task * job->kv_heads + head) * 2 * prompt * job->width;
                    for (long d = 0; d < size; d += LANES) {
                        store(by_keys + d, load(by_keys + d) + load(part + d));
                        store(by_values + d, load(by_values + d) + load(part + prompt * job->width + d));
                    }
                }
            }
        }
    }
    return failed;
}

/* ---- one new token per row through all layers of a decoder, to the logits of the next ----
 *
 * A thread takes some rows from the first layer to the last, for no row needs another: its numbers stay in its caches,
 * and no thread waits for another but at the end.
 */

long panel(void) { return PANEL; }

/* to (panels, k, PANEL) = w (n, k), transposed, with columns of 0 beyond n. */
void pack(long n, long k, const float *w, float *to)
{
#pragma omp parallel for schedule(static)
    for (long p = 0; p < (n + PANEL - 1) / PANEL; p++)
        for (long d = 0; d < k; d++)
            for (long i = 0; i < PANEL; i++)
                to[(p * k + d) * PANEL + i] = p * PANEL + i < n ? w[(p * PANEL + i) * k + d] : 0.0f;
}

typedef struct {                                      /* of one layer; biases and norms may be missing */
    const float *first_norm, *attention, *attention_bias; /* packed [queries; keys; values] */
    const float *query_norm, *key_norm;
    const float *output, *output_bias;
    const float *second_norm, *gates, *gates_bias;    /* packed [gate; up], each filled up to whole panels */
    const float *down, *down_bias;
} layer_weights;

typedef struct {                                      /* of one layer, for these rows */
    const float *prompt_keys, *prompt_values;
    float *const *key_blocks, *const *value_blocks;
    float *kept[9]; /* or NULL: slots for queries, keys, values, output, gate, up, down, what attention put out, totals */
} layer_state;

typedef struct {
    long layers, hidden, inner;
    float eps, head_eps;
    const layer_weights *weights;
    const layer_state *states;
    const float *cosine, *sine;                       /* (rows, width) */
    const float *stream;                              /* (rows, hidden): embeddings */
    long slot;                                        /* of row 0 */
    float last_eps;
    const float *last_norm, *head;                    /* after the layers; the head packed */
    long vocabulary;
    float *logits;                                    /* (rows, vocabulary filled up to whole panels) */
} decoder;

INLINE long up_to(long n, long step) { return (n + step - 1) / step * step; }

/* out (rows, n filled up) = in (rows, k) times a packed matrix, plus a bias (n filled up) that may be missing. */
static void through(long rows, long n, long k, const float *in, const float *matrix, const float *bias, float *out,
                    errands *some)
{
    const long stride = up_to(n, PANEL);
    for (long p = 0; p < stride; p += PANEL)
        blocks_below(VECTORS, rows, k, in, k, 1, matrix + p * k, PANEL, out + p, stride, 0, some);
    if (bias)
        for (long row = 0; row < rows; row++)
            for (long i = 0; i < stride; i += LANES)
                store(out + row * stride + i, load(out + row * stride + i) + load(bias + i));
}

static void norm_rows(long rows, long width, const float *x, const float *w, float eps, float *y)
{
    for (long row = 0; row < rows; row++) {
        float scale = inverse_root(x + row * width, NULL, width, eps);
        for (long i = 0; i < width; i++)
            y[row * width + i] = w[i] * (x[row * width + i] * scale);
    }
}

static void add_rows(long rows, long width, float *x, const float *y, long stride)
{
    for (long row = 0; row < rows; row++)
        for (long i = 0; i < width; i++)
            x[row * width + i] += y[row * stride + i];
}

/* Copies what nobody reads soon past the caches, where that is possible. */
INLINE void put_away(float *to, const float *from, long count)
{
#ifdef __AVX512F__
    if (count % LANES == 0 && (uintptr_t)to % 64 == 0) {
        for (long i = 0; i < count; i += LANES)
            _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
        return;
    }
#endif
    memcpy(to, from, (size_t)count * sizeof(float));
}

/* Rows' numbers (rows, width) from a matrix with this stride, each into its slot. */
static void keep(float *kept, long slot, const int64_t *rows, long count, long width, const float *from, long stride)
{
    if (kept)
        for (long r = 0; r < count; r++)
            put_away(kept + (slot + rows[r]) * width, from + r * stride, width);
}

/* Where the keys and values lie that a layer's attention will meet, in the order in which it will. */
static void run_errands(errands *some, const decoding *job, const layer_state *state, long width, long from, long to)
{
    long count = 0;
    for (long task = from; task < to; task++)
        for (long head = 0; head < job->kv_heads; head++)
            for (int kind = 0; kind < 2; kind++)
                for (long r = 0; r < job->count[task]; r++)
                    for (long b = 0, done = 0; done < job->own; b++, done += job->block_size) {
                        const float *block = (kind ? state->value_blocks : state->key_blocks)[b];
                        const long row = job->order[job->first[task] + r];
                        some->starts[count] = block + (row * job->kv_heads + head) * job->block_size * width;
                        some->sizes[count++] = least(job->block_size, job->own - done) * width;
                    }
    some->count = count, some->number = 0, some->at = some->end = NULL;
}

static int decode_rows(const decoder *d, decoding job, long width, long from, long to)
{
    if (from >= to)
        return 0;
    const long first = job.first[from], rows = job.first[to - 1] + job.count[to - 1] - first;
    const int64_t *order = job.order + first;
    const long heads = job.heads, kv_heads = job.kv_heads, hidden = d->hidden, inner = d->inner;
    const long asked = heads * width, known = kv_heads * width;
    const long attention = up_to(asked + 2 * known, PANEL), wide = up_to(hidden, PANEL), gate = up_to(inner, PANEL);
    long most = 0;
    for (long task = from; task < to; task++)
        most = job.count[task] > most ? job.count[task] : most;
    const long stretches = rows * kv_heads * 2 * ((job.own + job.block_size - 1) / job.block_size);
    const long sizes[] = {rows * hidden, rows * hidden, rows * attention, rows * asked, rows * asked, rows * heads,
                          rows * wide, rows * 2 * gate, rows * inner, task_size(&job, width, most), 2 * stretches,
                          2 * stretches};
    float *parts[12];
    long size = 0;
    for (int i = 0; i < 12; i++)
        size += up_to(sizes[i], LANES);
    float *memory = find_room(size);
    if (memory == NULL)
        return 1;
    size = 0;
    for (int i = 0; i < 12; i++) {
        parts[i] = memory + size;
        size += up_to(sizes[i], LANES);
    }
    float *stream = parts[0], *normed = parts[1], *all_three = parts[2], *queries = parts[3], *found = parts[4];
    float *totals = parts[5], *out = parts[6], *gates = parts[7], *active = parts[8], *scratch = parts[9];
    errands some = {.starts = (const float **)parts[10], .sizes = (long *)parts[11]};
    run_errands(&some, &job, d->states, width, from, to);
    job.queries = queries, job.outputs = found, job.totals = totals, job.in_order = 1, job.base = first;
    for (long r = 0; r < rows; r++)
        memcpy(stream + r * hidden, d->stream + order[r] * hidden, (size_t)hidden * sizeof(float));
    const long block = (job.own - 1) / job.block_size, column = (job.own - 1) % job.block_size;
    for (long number = 0; number < d->layers; number++) {
        const layer_weights *w = d->weights + number;
        const layer_state *state = d->states + number;
        float *const *kept = state->kept;
        norm_rows(rows, hidden, stream, w->first_norm, d->eps, normed);
        through(rows, asked + 2 * known, hidden, normed, w->attention, w->attention_bias, all_three, &some);
        keep(kept[0], d->slot, order, rows, asked, all_three, attention);
        keep(kept[1], d->slot, order, rows, known, all_three + asked, attention);
        keep(kept[2], d->slot, order, rows, known, all_three + asked + known, attention);
        for (long r = 0; r < rows; r++) {
            const float *c = d->cosine + order[r] * width, *s = d->sine + order[r] * width;
            float *query = all_three + r * attention, *key = query + asked, *value = key + known;
            for (long head = 0; head < heads; head++)
                turn(query + head * width, w->query_norm, d->head_eps, c, s, width, queries + r * asked + head * width);
            for (long head = 0; head < kv_heads; head++) {
                long at = ((order[r] * kv_heads + head) * job.block_size + column) * width;
                turn(key + head * width, w->key_norm, d->head_eps, c, s, width, state->key_blocks[block] + at);
                memcpy(state->value_blocks[block] + at, value + head * width, (size_t)width * sizeof(float));
            }
        }
        job.key_blocks = (const float *const *)state->key_blocks;
        job.value_blocks = (const float *const *)state->value_blocks;
        job.prompt_keys = state->prompt_keys, job.prompt_values = state->prompt_values;
        for (long task = from; task < to; task++)
            for (long head = 0; head < kv_heads; head++)
                attend_task(&job, width, task, head, scratch);
        run_errands(&some, &job, d->states + (number + 1) % d->layers, width, from, to);
        keep(kept[7], d->slot, order, rows, asked, found, asked);
        keep(kept[8], d->slot, order, rows, heads, totals, heads);
        through(rows, hidden, asked, found, w->output, w->output_bias, out, &some);
        keep(kept[3], d->slot, order, rows, hidden, out, wide);
        add_rows(rows, hidden, stream, out, wide);
        norm_rows(rows, hidden, stream, w->second_norm, d->eps, normed);
        through(rows, 2 * gate, hidden, normed, w->gates, w->gates_bias, gates, &some);
        keep(kept[4], d->slot, order, rows, inner, gates, 2 * gate);
        keep(kept[5], d->slot, order, rows, inner, gates + gate, 2 * gate);
        for (long r = 0; r < rows; r++) {
            const float *g = gates + r * 2 * gate;
            gate_row(inner, g, g + gate, active + r * inner);
        }
        through(rows, hidden, inner, active, w->down, w->down_bias, out, &some);
        keep(kept[6], d->slot, order, rows, hidden, out, wide);
        add_rows(rows, hidden, stream, out, wide);
    }
#ifdef __AVX512F__
    _mm_sfence();
#endif
    norm_rows(rows, hidden, stream, d->last_norm, d->last_eps, normed);
    for (long p = 0; p < up_to(d->vocabulary, PANEL); p += PANEL) {
        through(rows, PANEL, hidden, normed, d->head + p * hidden, NULL, out, NULL);
        for (long r = 0; r < rows; r++)
            memcpy(d->logits + order[r] * up_to(d->vocabulary, PANEL) + p, out + r * PANEL, PANEL * sizeof(float));
    }
    free(memory);
    return 0;
}

/* All rows, each thread about as many as any other.  Returns 0, or 1 where memory is short. */
int decode_layers(const decoder *d, const decoding *job, long width)
{
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        long threads = 1, number = 0;
#ifdef _OPENMP
        threads = omp_get_num_threads();
        number = omp_get_thread_num();
#endif
        long from = 0, to;
        while (from < job->tasks && job->first[from] * threads < number * job->rows)
            from++;
        for (to = from; to < job->tasks && job->first[to] * threads < (number + 1) * job->rows;)
            to++;
        failed = decode_rows(d, *job, width, from, to);
    }
    return failed;
}
