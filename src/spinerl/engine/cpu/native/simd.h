/* Vectors of 16 float32 numbers.  GCC and Clang make several registers of one where the processor's are narrower. */

#ifndef SPINERL_SIMD_H
#define SPINERL_SIMD_H

#include <stdint.h>

#define LANES 16
typedef float vec __attribute__((vector_size(64)));
typedef int32_t vec_int __attribute__((vector_size(64)));
typedef float half_vec __attribute__((vector_size(32)));
typedef float unaligned_vec __attribute__((vector_size(64), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#ifdef __has_feature
#if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
/* UNROLL before a loop; SPECIALIZE: a function inlined once for each value of its constant arguments. */
#ifdef __SANITIZE_ADDRESS__ /* with checks, such code would take minutes to compile */
#define UNROLL
#define SPECIALIZE static
#else
#define UNROLL _Pragma("GCC unroll 16")
#define SPECIALIZE INLINE
#endif

INLINE vec load(const float *x) { return *(const unaligned_vec *)x; }
INLINE void store(float *out, vec x) { *(unaligned_vec *)out = x; }
INLINE vec broadcast(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE long min_long(long a, long b) { return a < b ? a : b; }
INLINE long ceil_div(long n, long step) { return (n + step - 1) / step; }
INLINE long round_up(long n, long step) { return ceil_div(n, step) * step; }

INLINE float vec_sum(vec x)
{
    half_vec a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    half_vec b = a + __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    b += __builtin_shufflevector(b, b, 4, 5, 6, 7, 0, 1, 2, 3);
    b += __builtin_shufflevector(b, b, 2, 3, 0, 1, 6, 7, 4, 5);
    return b[0] + b[1];
}

INLINE vec vec_max(vec a, vec b)
{
    vec_int mask = a > b;
    return (vec)(((vec_int)a & mask) | ((vec_int)b & ~mask));
}

INLINE float vec_reduce_max(vec x)
{
    float max = x[0];
    for (int i = 1; i < LANES; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

/* exp(x), relative error 2e-7, for x <= 88; exp(-87.3), about the smallest normal number, for all x below -87.3. */
INLINE vec vec_exp(vec x)
{
    x = vec_max(x, broadcast(-87.3f));
    vec shifted = x * 1.44269504f + 12582912.0f; /* adding 1.5 * 2^23 rounds to an integer */
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec y = broadcast(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    vec_int exponent = __builtin_convertvector(n, vec_int) + 127;
    return y * (vec)(exponent << 23);
}

INLINE vec vec_sigmoid(vec x) { return 1.0f / (1.0f + vec_exp(-vec_max(x, broadcast(-87.3f)))); }

/* The sums of 16 vectors, as one vector in their order.  Each stage adds halves (quarters, ...) of two vectors into one. */
#define MERGE(a, b, first, second) (__builtin_shufflevector(a, b, first) + __builtin_shufflevector(a, b, second))
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31

INLINE vec vec_sum_16(const vec *x)
{
    vec by8[8], by4[4], by2[2];
    UNROLL for (int i = 0; i < 8; i++)
        by8[i] = MERGE(x[2 * i], x[2 * i + 1], LOW8, HIGH8);
    UNROLL for (int i = 0; i < 4; i++)
        by4[i] = MERGE(by8[2 * i], by8[2 * i + 1], LOW4, HIGH4);
    UNROLL for (int i = 0; i < 2; i++)
        by2[i] = MERGE(by4[2 * i], by4[2 * i + 1], LOW2, HIGH2);
    return MERGE(by2[0], by2[1], EVEN, ODD);
}

#endif
