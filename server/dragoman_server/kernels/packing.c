/* Weights in the order in which the product of int8 reads them. */

#include "kernels.h"

PUBLIC void pack_int8(const int8_t *weights, size_t depth, size_t width, size_t panel, size_t step, int8_t *packed) {
  for (size_t k = 0; k < depth; k++)
    for (size_t first = 0; first < width; first += panel) {
      const int8_t *from = weights + k * width + first;
      int8_t *to = packed + first * depth + k / step * step * panel + k % step;
      for (size_t i = 0; i < panel; i++) to[step * i] = first + i < width ? from[i] : 0;
    }
}
