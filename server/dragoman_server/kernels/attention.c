/* One step of attention over keys and values that each row has for itself (Vaswani et al. 2017, section 3.2.1).
 *
 * What a head of a row gives depends on nothing but its own query, keys and values: not on the batch, nor on the room
 * that there is behind its last position.
 */

#include <math.h>

#include "kernels.h"
#include "vectors.h"

INLINE void append(const float *from, char *to, size_t width, bool is_int8) {
  if (!is_int8) memcpy(to, from, width * sizeof *from);
  else
    for (size_t i = 0; i < width; i += LANES) store_int8((int8_t *)to + i, load(from + i));
}

/* Asks for memory that is read soon. */
INLINE void fetch(const char *from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 3);
}

/* `width` and `is_int8` are constants where this is inlined. */
INLINE void attend_one(const float *query, const char *keys, const char *values, const float *bias, size_t count,
                       float scale, size_t width, bool is_int8, float *scores, floats *mixed) {
#define ELEMENTS(base, index) \
  (is_int8 ? load_int8((const int8_t *)(base) + (index)) : load((const float *)(base) + (index)))
  for (size_t p = 0; p < count; p++) {
    floats products = load(query) * ELEMENTS(keys, p * width);
#pragma GCC unroll 16
    for (size_t i = LANES; i < width; i += LANES) products += load(query + i) * ELEMENTS(keys, p * width + i);
    scores[p] = sum(products) * scale + (bias ? bias[p] : 0.0f);
  }
  size_t padded = (count + LANES - 1) / LANES * LANES;
  for (size_t p = count; p < padded; p++) scores[p] = -INFINITY;
  floats peaks = load(scores);
  for (size_t p = LANES; p < padded; p += LANES) peaks = larger(peaks, load(scores + p));
  float peak = largest(peaks);
  floats total = {0};
  for (size_t p = 0; p < padded; p += LANES) {
    floats weights = exponential(load(scores + p) - peak);
    total += weights;
    store(scores + p, weights);
  }
  float norm = 1.0f / sum(total);
  for (size_t i = 0; i < width / LANES; i++) mixed[i] = all(0.0f);
  for (size_t p = 0; p < count; p++)
#pragma GCC unroll 16
    for (size_t i = 0; i < width / LANES; i++) mixed[i] += scores[p] * ELEMENTS(values, p * width + i * LANES);
  for (size_t i = 0; i < width / LANES; i++) mixed[i] *= norm;
#undef ELEMENTS
}

INLINE void attend_all(const Attention *a, size_t first, size_t end, size_t width, bool is_int8) {
  float scores[a->capacity + LANES];
  size_t bytes = width * (is_int8 ? sizeof(int8_t) : sizeof(float)); /* of a position */
  for (size_t index = first; index < end; index++) {
    size_t row = index / a->heads, head = index % a->heads, last = (size_t)a->last[row];
    const float *query = a->queries + row * a->row_width + head * width;
    char *keys = a->keys + index * a->capacity * bytes, *values = a->values + index * a->capacity * bytes;
    if (index + 1 < end) { /* what comes next lies elsewhere, where the processor does not expect it */
      size_t next = (size_t)a->last[(index + 1) / a->heads] + 1;
      fetch(keys + a->capacity * bytes, next * bytes);
      fetch(values + a->capacity * bytes, next * bytes);
    }
    if (a->appends) {
      append(query + a->heads * width, keys + last * bytes, width, is_int8);
      append(query + 2 * a->heads * width, values + last * bytes, width, is_int8);
    }
    const float *bias = a->bias ? a->bias + row * a->bias_row + head * a->bias_head : NULL;
    floats mixed[width / LANES];
    attend_one(query, keys, values, bias, last + 1, a->scale, width, is_int8, scores, mixed);
    for (size_t i = 0; i < width / LANES; i++) {
      size_t place = index * width + i * LANES;
      if (a->out) store(a->out + place, mixed[i]);
      else store_uint8(a->quantised + place, mixed[i], a->inverse_scale, a->zero);
    }
  }
}

PUBLIC void OF_VARIANT(attend)(const Attention *a, size_t first, size_t end) {
  if (a->width == 64 && a->is_int8) attend_all(a, first, end, 64, true);
  else if (a->width == 64) attend_all(a, first, end, 64, false);
  else if (a->width == 32 && a->is_int8) attend_all(a, first, end, 32, true);
  else if (a->is_int8) attend_all(a, first, end, a->width, true);
  else attend_all(a, first, end, a->width, false);
}
