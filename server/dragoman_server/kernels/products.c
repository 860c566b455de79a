/* Products of states with the weights of a layer, both int8: by an instruction that adds four products at a time (VNNI),
 * or by one that adds two of 16 bits (AVX2).
 *
 * A few rows wait for the weights to come from memory, many for the multiplier: each panel of weights is read once for
 * MOST_ROWS rows, whose sums stay in registers. Where there are tiles (AMX), more rows than that are taken by 32, in
 * tiles of 16 rows and columns. Sums are exact, so a row's result does not depend on the others.
 */

#include "kernels.h"
#include "vectors.h"

#define MOST_ROWS 6

#if defined(__AVX512VNNI__)

#define PANEL INT8_PANEL_VNNI
#define STEP INT8_STEP_VNNI
typedef __m512i Weights;
typedef uint8_t State;

INLINE Weights load_weights(const int8_t *from) { return _mm512_loadu_si512(from); }

INLINE void fetch(const int8_t *weights) { (void)weights; }

/* The sums and the products of some states of a row with the weights of each column. */
INLINE ints add_products(ints sums, const State *states, Weights weights) {
  int32_t some;
  memcpy(&some, states, sizeof some);
  return (ints)_mm512_dpbusd_epi32((__m512i)sums, _mm512_set1_epi32(some), weights);
}

#else

#define PANEL INT8_PANEL_AVX2
#define STEP INT8_STEP_AVX2
typedef __m256i Weights;
typedef int16_t State;

INLINE Weights load_weights(const int8_t *from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)from));
}

/* Processors of this kind do not look far enough ahead: 8 GB/s in place of 11 on a Zen 3. */
INLINE void fetch(const int8_t *weights) { __builtin_prefetch(weights + 2048); }

INLINE ints add_products(ints sums, const State *states, Weights weights) {
  int32_t some;
  memcpy(&some, states, sizeof some);
  return sums + (ints)_mm256_madd_epi16(_mm256_set1_epi32(some), weights);
}

#endif

#define REGISTERS (PANEL / LANES)
#define PANELS (INT8_BLOCK / PANEL)

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
INLINE void multiply_panel(const Int8Product *p, const State *states, size_t first_row, size_t num_rows, size_t panel) {
  const int8_t *weights = p->weights + panel * PANEL * p->depth;
  ints sums[MOST_ROWS][REGISTERS];
#pragma GCC unroll 8
  for (size_t row = 0; row < num_rows; row++)
#pragma GCC unroll 8
    for (size_t i = 0; i < REGISTERS; i++) sums[row][i] = (ints){0};
  for (size_t k = 0; k < p->depth; k += STEP, weights += STEP * PANEL) {
    fetch(weights);
    Weights some[REGISTERS];
#pragma GCC unroll 8
    for (size_t i = 0; i < REGISTERS; i++) some[i] = load_weights(weights + STEP * i * LANES);
#pragma GCC unroll 8
    for (size_t row = 0; row < num_rows; row++)
#pragma GCC unroll 8
      for (size_t i = 0; i < REGISTERS; i++)
        sums[row][i] = add_products(sums[row][i], states + row * p->depth + k, some[i]);
  }
  for (size_t row = 0; row < num_rows; row++) store_sums(p, first_row + row, panel * PANEL, sums[row]);
}

/* A block for as many rows; their states are made wider once for all of its panels. */
INLINE void multiply(const Int8Product *p, size_t first_row, size_t num_rows, size_t block) {
  const uint8_t *quantised = p->quantised + first_row * p->depth;
#if defined(__AVX512VNNI__)
  const State *states = quantised;
#else
  State states[num_rows * p->depth];
  for (size_t i = 0; i < num_rows * p->depth; i++) states[i] = quantised[i];
#endif
  for (size_t panel = block * PANELS; panel < (block + 1) * PANELS && panel * PANEL < p->width; panel++)
    multiply_panel(p, states, first_row, num_rows, panel);
}

static void multiply_block(const Int8Product *p, size_t block) {
  size_t row = 0, left = p->rows;
  /* Seven or eight are better as two times four than as six and a rest. */
  for (; left == MOST_ROWS || left > 8; row += MOST_ROWS, left -= MOST_ROWS) multiply(p, row, MOST_ROWS, block);
  for (; left >= 4; row += 4, left -= 4) multiply(p, row, 4, block);
  switch (left) {
    case 3: multiply(p, row, 3, block); break;
    case 2: multiply(p, row, 2, block); break;
    case 1: multiply(p, row, 1, block); break;
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
  for (size_t block = first; block < end; block++) multiply_block(p, block);
}
