/* Products of states with the weights of a layer, both int8, on processors that add four products at a time (VNNI).
 *
 * A few rows wait for the weights to come from memory, many for the multiplier: each panel of weights is read once for
 * MOST_ROWS rows, whose sums stay in registers. Where there are tiles (AMX), more rows than that are taken by 32, in
 * tiles of 16 rows and columns. Sums are exact, so a row's result does not depend on the others.
 */

#include "kernels.h"
#include "vectors.h"

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
  size_t row = 0, left = p->rows;
  /* Seven or eight are better as two times four than as six and a rest. */
  for (; left == MOST_ROWS || left > 8; row += MOST_ROWS, left -= MOST_ROWS) multiply(p, row, MOST_ROWS, panel);
  for (; left >= 4; row += 4, left -= 4) multiply(p, row, 4, panel);
  switch (left) {
    case 3: multiply(p, row, 3, panel); break;
    case 2: multiply(p, row, 2, panel); break;
    case 1: multiply(p, row, 1, panel); break;
  }
}

#if defined(__AMX_INT8__)

#define TILE 16 /* rows and columns of sums, and 64 bytes of a row of states */
#define TILE_BYTES 64

/* What the processor is told: the sizes of its eight tiles. */
typedef struct {
  uint8_t palette, start_row, none[14];
  uint16_t row_bytes[TILE];
  uint8_t rows[TILE];
} Tiles;

/* Tiles 0 and 1 are sums of the upper rows, 2 and 3 of the lower ones; 4 and 5 states, 6 and 7 weights. */
static void set_tiles(size_t upper, size_t lower) {
  const size_t rows[] = {upper, upper, lower, lower, upper, lower, TILE, TILE};
  Tiles tiles = {.palette = 1};
  for (size_t i = 0; i < 8; i++)
    if (rows[i]) tiles.rows[i] = (uint8_t)rows[i], tiles.row_bytes[i] = TILE_BYTES;
  _tile_loadconfig(&tiles);
}

/* Half of a panel; the sums of a row are PANEL apart. */
static void multiply_half(const uint8_t *states, size_t depth, bool has_lower, const int8_t *weights, int32_t *sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (has_lower) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (size_t k = 0; k < depth; k += TILE_BYTES, weights += TILE_BYTES * PANEL) {
    _tile_loadd(4, states + k, depth);
    _tile_loadd(6, weights, 4 * PANEL);
    _tile_loadd(7, weights + TILE_BYTES, 4 * PANEL);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    if (has_lower) {
      _tile_loadd(5, states + TILE * depth + k, depth);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  const size_t stride = sizeof(int32_t) * PANEL;
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + TILE, stride);
  if (has_lower) {
    _tile_stored(2, sums + TILE * PANEL, stride);
    _tile_stored(3, sums + TILE * PANEL + TILE, stride);
  }
}

static void multiply_in_tiles(const Int8Product *p, size_t first, size_t end) {
  int32_t sums[2 * TILE * PANEL];
  for (size_t row = 0; row < p->rows; row += 2 * TILE) {
    size_t left = p->rows - row, upper = left < TILE ? left : TILE;
    size_t lower = left < 2 * TILE ? left - upper : TILE;
    set_tiles(upper, lower);
    const uint8_t *states = p->quantised + row * p->depth;
    for (size_t panel = first; panel < end; panel++) {
      const int8_t *weights = p->weights + panel * PANEL * p->depth;
      multiply_half(states, p->depth, lower > 0, weights, sums);
      multiply_half(states, p->depth, lower > 0, weights + 2 * TILE_BYTES, sums + 2 * TILE);
      for (size_t i = 0; i < upper + lower; i++)
        store_sums(p, row + i, panel * PANEL, (const ints *)(sums + i * PANEL));
    }
  }
  _tile_release(); /* what is in tiles would be saved whenever the thread is interrupted */
}

#endif

PUBLIC void OF_VARIANT(int8_product)(const Int8Product *p, size_t first, size_t end) {
#if defined(__AMX_INT8__)
  if (p->rows > MOST_ROWS && p->depth % TILE_BYTES == 0) {
    multiply_in_tiles(p, first, end);
    return;
  }
#endif
  for (size_t panel = first; panel < end; panel++) multiply_panel(p, panel);
}
