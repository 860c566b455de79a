/* Products of states with the weights of a layer, both int8, on processors that add four products at a time (VNNI).
 *
 * A few rows wait for the weights to come from memory, many for the multiplier: each panel of weights is read once for
 * MOST_ROWS rows, whose sums stay in registers. Sums are exact, so a row's result does not depend on the others.
 */

#include "kernels.h"
#include "vectors.h"

#if defined(__AVX512VNNI__)

#define REGISTERS (PANEL / LANES)
#define MOST_ROWS 6

/* Not added to anything in the same instruction, which would round once in place of twice, as ONNX Runtime does. */
INLINE floats rounded(floats product) {
  __asm__("" : "+v"(product));
  return product;
}

INLINE void store_sums(const Int8Product *p, size_t row, size_t first_column, const ints *sums) {
  for (size_t i = 0; i < REGISTERS; i++) {
    size_t column = first_column + i * LANES;
    if (column >= p->width) return;
    ints sum = sums[i] + *(const ints *)(p->offsets + column);
    floats scaled = rounded(__builtin_convertvector(sum, floats) * (p->scale * load(p->weight_scales + column)));
    if (p->bias != NULL) scaled += load(p->bias + column);
    store(p->out + row * p->width + column, scaled);
  }
}

/* One panel for `num_rows`, a constant, so that all loops over rows are unrolled. */
INLINE void multiply(const Int8Product *p, size_t first_row, size_t num_rows, size_t panel) {
  const uint8_t *states = p->quantised + first_row * p->depth;
  const int8_t *weights = p->weights + panel * PANEL * p->depth;
  ints sums[MOST_ROWS][REGISTERS];
#pragma GCC unroll 8
  for (size_t row = 0; row < num_rows; row++)
#pragma GCC unroll 8
    for (size_t i = 0; i < REGISTERS; i++) sums[row][i] = (ints){0};
  for (size_t k = 0; k < p->depth; k += 4, weights += 4 * PANEL) {
    __m512i four[REGISTERS];
#pragma GCC unroll 8
    for (size_t i = 0; i < REGISTERS; i++) four[i] = _mm512_loadu_si512(weights + 4 * i * LANES);
#pragma GCC unroll 8
    for (size_t row = 0; row < num_rows; row++) {
      int32_t state;
      memcpy(&state, states + row * p->depth + k, 4);
#pragma GCC unroll 8
      for (size_t i = 0; i < REGISTERS; i++)
        sums[row][i] = (ints)_mm512_dpbusd_epi32((__m512i)sums[row][i], _mm512_set1_epi32(state), four[i]);
    }
  }
  for (size_t row = 0; row < num_rows; row++) store_sums(p, first_row + row, panel * PANEL, sums[row]);
}

static void multiply_panel(const Int8Product *p, size_t panel) {
  size_t row = 0;
  for (; row + MOST_ROWS + 2 < p->rows || row + MOST_ROWS == p->rows; row += MOST_ROWS)
    multiply(p, row, MOST_ROWS, panel);
  /* Seven or eight are two times four at most, not six and a rest. */
  for (; row + 4 <= p->rows; row += 4) multiply(p, row, 4, panel);
  switch (p->rows - row) {
    case 3: multiply(p, row, 3, panel); break;
    case 2: multiply(p, row, 2, panel); break;
    case 1: multiply(p, row, 1, panel); break;
  }
}

PUBLIC void OF_VARIANT(int8_product)(const Int8Product *p, size_t first, size_t end) {
  for (size_t panel = first; panel < end; panel++) multiply_panel(p, panel);
}

#endif
