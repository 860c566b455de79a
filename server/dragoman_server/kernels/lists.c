/* The logits of the tokens that each row of a batch may have: nothing else is read or computed.
 *
 * A row's result depends on nothing but its own state and tokens. Integers are summed up exactly on every processor.
 */

#include <math.h>

#include "kernels.h"
#include "vectors.h"

/* Tokens whose products are computed at a time. */
#define GROUP 8
#define CACHE_LINE 64

/* Those that integers of states are multiplied with: as they are, or less their zero. */
#if defined(__AVX512VNNI__)
typedef uint8_t State;
#else
typedef int16_t State;
#endif

INLINE void fetch(const void *memory, size_t bytes) {
  for (size_t i = 0; i < bytes; i += CACHE_LINE) __builtin_prefetch((const char *)memory + i);
}

/* Which tokens a group has. Nobody reads the numbers of those behind the last, which are those of token 0. */
typedef struct {
  size_t count;
  size_t tokens[GROUP];
} Group;

INLINE Group group_at(const int32_t *ids, size_t start, size_t end) {
  Group group = {.count = end - start < GROUP ? end - start : GROUP};
  for (size_t i = 0; i < group.count; i++) group.tokens[i] = ids[start + i] > 0 ? (size_t)ids[start + i] : 0;
  return group;
}

INLINE int32_t sum_of_ints(ints values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)values);
#else
  int32_t total = 0;
  for (int lane = 0; lane < LANES; lane++) total += values[lane];
  return total;
#endif
}

#if defined(__AVX512VNNI__)
INLINE void prepare(const ListProduct *l, size_t row, State *states) {
  memcpy(states, l->quantised + row * l->width, l->width);
}

INLINE void int8_group(const ListProduct *l, const State *states, const Group *group, int32_t *sums) {
  const size_t step = 4 * LANES;
  const int8_t *rows[GROUP];
  ints totals[GROUP], of_weights[GROUP];
  for (int i = 0; i < GROUP; i++)
    rows[i] = l->int8_weights + group->tokens[i] * l->width, totals[i] = of_weights[i] = (ints){0};
  size_t column = 0;
  for (; column + step <= l->width; column += step) {
    __m512i some = _mm512_loadu_si512(states + column);
    for (int i = 0; i < GROUP; i++) {
      __m512i weights = _mm512_loadu_si512(rows[i] + column);
      totals[i] = (ints)_mm512_dpbusd_epi32((__m512i)totals[i], some, weights);
      of_weights[i] = (ints)_mm512_dpbusd_epi32((__m512i)of_weights[i], _mm512_set1_epi8(1), weights);
    }
  }
  for (int i = 0; i < GROUP; i++) sums[i] = sum_of_ints(totals[i] - of_weights[i] * l->zero);
  for (; column < l->width; column++)
    for (int i = 0; i < GROUP; i++) sums[i] += (states[column] - l->zero) * rows[i][column];
}
#else
typedef int16_t shorts __attribute__((vector_size(4 * LANES), aligned(2), may_alias));

/* The sums of the products of neighbours. */
INLINE ints paired_products(shorts left, const int8_t *right) {
#if defined(__AVX512F__)
  return (ints)_mm512_madd_epi16((__m512i)left, _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)right)));
#elif defined(__AVX2__)
  return (ints)_mm256_madd_epi16((__m256i)left, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)right)));
#elif defined(__SSE2__)
  shorts widened;
  for (int lane = 0; lane < 2 * LANES; lane++) widened[lane] = right[lane];
  return (ints)_mm_madd_epi16((__m128i)left, (__m128i)widened);
#else
  ints products;
  for (int lane = 0; lane < LANES; lane++)
    products[lane] = left[2 * lane] * right[2 * lane] + left[2 * lane + 1] * right[2 * lane + 1];
  return products;
#endif
}

INLINE void prepare(const ListProduct *l, size_t row, State *states) {
  for (size_t i = 0; i < l->width; i++) states[i] = (State)(l->quantised[row * l->width + i] - l->zero);
}

INLINE void int8_group(const ListProduct *l, const State *states, const Group *group, int32_t *sums) {
  const int8_t *rows[GROUP];
  ints totals[GROUP];
  for (int i = 0; i < GROUP; i++) rows[i] = l->int8_weights + group->tokens[i] * l->width, totals[i] = (ints){0};
  size_t column = 0;
  for (; column + 2 * LANES <= l->width; column += 2 * LANES) {
    shorts some = *(const shorts *)(states + column);
    for (int i = 0; i < GROUP; i++) totals[i] += paired_products(some, rows[i] + column);
  }
  for (int i = 0; i < GROUP; i++) sums[i] = sum_of_ints(totals[i]);
  for (; column < l->width; column++)
    for (int i = 0; i < GROUP; i++) sums[i] += states[column] * rows[i][column];
}
#endif

INLINE void float_group(const ListProduct *l, const float *states, const Group *group, float *sums) {
  const float *rows[GROUP];
  floats totals[GROUP];
  for (int i = 0; i < GROUP; i++) rows[i] = l->float_weights + group->tokens[i] * l->width, totals[i] = all(0.0f);
  size_t column = 0;
  for (; column + LANES <= l->width; column += LANES) {
    floats some = load(states + column);
    for (int i = 0; i < GROUP; i++) totals[i] += some * load(rows[i] + column);
  }
  for (int i = 0; i < GROUP; i++) sums[i] = sum(totals[i]);
  for (; column < l->width; column++)
    for (int i = 0; i < GROUP; i++) sums[i] += states[column] * rows[i][column];
}

INLINE void compute_part(const ListProduct *l, size_t row, size_t start, size_t end) {
  const int32_t *ids = l->ids + row * l->count;
  float *logits = l->logits + row * l->count;
  bool is_int8 = l->quantised != NULL;
  State states[is_int8 ? l->width : 1];
  float scale = 1.0f;
  if (is_int8) {
    prepare(l, row, states);
    scale = l->scales[l->is_scaled_by_row ? row : 0];
  }
  size_t row_bytes = l->width * (is_int8 ? sizeof(int8_t) : sizeof(float));
  const char *weights = is_int8 ? (const char *)l->int8_weights : (const char *)l->float_weights;
  Group group = group_at(ids, start, end);
  for (size_t first = start; first < end; first += GROUP) {
    Group next = group_at(ids, first + GROUP < end ? first + GROUP : first, end);
    for (size_t i = 0; i < next.count; i++) fetch(weights + next.tokens[i] * row_bytes, row_bytes);
    float found[GROUP];
    if (is_int8) {
      int32_t sums[GROUP];
      int8_group(l, states, &group, sums);
      for (size_t i = 0; i < GROUP; i++) found[i] = (float)sums[i] * (scale * l->weight_scales[group.tokens[i]]);
    } else {
      float_group(l, l->states + row * l->width, &group, found);
    }
    for (size_t i = 0; i < group.count; i++)
      logits[first + i] = ids[first + i] < 0 ? -INFINITY : found[i] + l->bias[group.tokens[i]];
    group = next;
  }
}

PUBLIC void OF_VARIANT(list_product)(const ListProduct *l, size_t first, size_t end) {
  for (size_t item = first; item < end; item++) {
    /* Lists are sorted, so the same part of other rows has tokens from near by, whose weights are in the cache. */
    size_t start = item / l->rows * LIST_PART, stop = start + LIST_PART;
    compute_part(l, item % l->rows, start, stop < l->count ? stop : l->count);
  }
}
