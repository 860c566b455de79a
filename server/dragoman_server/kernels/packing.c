/* Weights in the order in which the product of int8 reads them. */

#include <string.h>

#include "kernels.h"

PUBLIC void pack_int8(const int8_t *weights, size_t depth, size_t width, int8_t *packed, int32_t *sums) {
  memset(sums, 0, width * sizeof *sums);
  for (size_t k = 0; k < depth; k++)
    for (size_t first = 0; first < width; first += PANEL) {
      const int8_t *from = weights + k * width + first;
      int8_t *to = packed + first * depth + k / 4 * 4 * PANEL + k % 4;
      for (size_t i = 0; i < PANEL; i++) {
        bool is_column = first + i < width;
        to[4 * i] = is_column ? from[i] : 0;
        if (is_column) sums[first + i] += from[i];
      }
    }
}
