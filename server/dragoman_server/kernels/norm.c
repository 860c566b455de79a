/* What stands between two products of int8, in one pass over each row: a sum, a norm, a nonlinearity, and integers. */

#include "kernels.h"
#include "vectors.h"

/* x * sigmoid(x) */
INLINE floats silu(floats x) {
  floats e = exponential(smaller(x, -x));
  ints is_negative = x < all(0.0f);
  floats upper = (floats)(((ints)e & is_negative) | ((ints)all(1.0f) & ~is_negative));
  return x * upper / (e + 1.0f);
}

PUBLIC void OF_VARIANT(norm)(const Norm *n, size_t first_row, size_t end_row) {
  size_t width = n->width;
  for (size_t row = first_row; row < end_row; row++) {
    const float *left = n->left + row * width, *right = n->right ? n->right + row * width : NULL;
    float *added = n->sums ? n->sums + row * width : NULL;
    float kept[width];
    floats total = all(0.0f), squares = all(0.0f);
    for (size_t i = 0; i < width; i += LANES) {
      floats x = load(left + i);
      if (right) x += load(right + i);
      if (added) store(added + i, x);
      store(kept + i, x);
      total += x;
    }
    float mean = n->is_centred ? sum(total) / (float)width : 0.0f;
    for (size_t i = 0; i < width; i += LANES) {
      floats x = load(kept + i) - mean;
      squares += x * x;
    }
    float factor = 1.0f / sqrtf(sum(squares) / (float)width + n->epsilon);
    for (size_t i = 0; i < width; i += LANES) {
      floats x = (load(kept + i) - mean) * factor * load(n->weight + i);
      if (n->bias) x += load(n->bias + i);
      if (n->normed) store(n->normed + row * width + i, x);
      store_uint8(n->quantised + row * width + i, x, n->inverse_scale, n->zero);
    }
  }
}

PUBLIC void OF_VARIANT(activate)(const Activate *a, size_t first, size_t end) {
  for (size_t i = first * LANES_OF_ALL; i < end * LANES_OF_ALL; i += LANES) {
    floats x = load(a->in + i);
    store_uint8(a->out + i, a->is_silu ? silu(x) : larger(x, all(0.0f)), a->inverse_scale, a->zero);
  }
}
