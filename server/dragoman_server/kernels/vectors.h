/* As many floats at a time as a register of the processor holds. */

#ifndef DRAGOMAN_VECTORS_H
#define DRAGOMAN_VECTORS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define LANES 8
#else
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#define LANES 4
#endif

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE floats load(const float *from) { return *(const floats *)from; }

INLINE void store(float *to, floats stored) { *(floats *)to = stored; }

INLINE floats all(float value) { return (floats){0} + value; }

/* Where the left one is no number, it is no number. */
INLINE floats larger(floats left, floats right) {
  ints is_right = left < right;
  return (floats)(((ints)right & is_right) | ((ints)left & ~is_right));
}

INLINE floats smaller(floats left, floats right) {
  ints is_right = right < left;
  return (floats)(((ints)right & is_right) | ((ints)left & ~is_right));
}

INLINE floats load_int8(const int8_t *from) {
#if defined(__AVX512F__)
  return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
  return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
  ints loaded;
  for (int lane = 0; lane < LANES; lane++) loaded[lane] = from[lane];
  return __builtin_convertvector(loaded, floats);
#endif
}

/* Rounded to the nearest integer, the even one of two; the nearest of -128 and 127 where there is none so large. */
INLINE void store_int8(int8_t *to, floats stored) {
  stored = smaller(larger(stored, all(-128.0f)), all(127.0f));
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)stored)));
#elif defined(__AVX2__)
  __m256i rounded = _mm256_cvtps_epi32((__m256)stored);
  __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storel_epi64((__m128i *)to, _mm_packs_epi16(halves, halves));
#else
  for (int lane = 0; lane < LANES; lane++) to[lane] = (int8_t)rintf(stored[lane]);
#endif
}

/* round(number / scale) + zero, within 0 and 255: ONNX's QuantizeLinear. */
INLINE void store_uint8(uint8_t *to, floats stored, float inverse_scale, float zero) {
  stored = smaller(larger(stored * inverse_scale, all(-zero)), all(255.0f - zero));
#if defined(__AVX512F__)
  __m512i rounded = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)stored), _mm512_set1_epi32((int)zero));
  _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(rounded));
#elif defined(__AVX2__)
  __m256i rounded = _mm256_add_epi32(_mm256_cvtps_epi32((__m256)stored), _mm256_set1_epi32((int)zero));
  __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(halves, halves));
#else
  for (int lane = 0; lane < LANES; lane++) to[lane] = (uint8_t)(rintf(stored[lane]) + zero);
#endif
}

INLINE float sum(floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)values);
#elif defined(__AVX2__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128((__m256)values), _mm256_extractf128_ps((__m256)values, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  for (int width = LANES / 2; width; width /= 2)
    for (int lane = 0; lane < width; lane++) values[lane] += values[lane + width];
  return values[0];
#endif
}

INLINE float largest(floats values) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)values);
#elif defined(__AVX2__)
  __m128 four = _mm_max_ps(_mm256_castps256_ps128((__m256)values), _mm256_extractf128_ps((__m256)values, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
#else
  for (int width = LANES / 2; width; width /= 2)
    for (int lane = 0; lane < width; lane++)
      if (values[lane + width] > values[lane]) values[lane] = values[lane + width];
  return values[0];
#endif
}

/* e^x of x <= 0, with an error of at most two units in the last place; 0 below -87.
 * The polynomial is that of the Cephes library (Moshier 1989). */
INLINE floats exponential(floats x) {
  const float lowest = -87.0f;
  const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits */
  ints is_zero = x < all(lowest);
  x = larger(x, all(lowest));
  floats shifted = x * 1.44269504088896341f + shift;
  ints exponent = (ints)shifted - (ints)all(shift);
  floats rounded = shifted - shift;
  x = x - rounded * 0.693359375f;
  x = x - rounded * -2.12194440e-4f;
  floats y = all(1.9875691500e-4f);
  y = y * x + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * (x * x) + x + 1.0f;
  y = y * (floats)((exponent + 127) << 23);
  return (floats)((ints)y & ~is_zero);
}

#endif
