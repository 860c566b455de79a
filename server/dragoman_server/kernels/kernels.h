/* What the operators compute, once for each instruction set: a source is compiled with -DVARIANT=name. */

#ifndef DRAGOMAN_KERNELS_H
#define DRAGOMAN_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Seen from outside of the library. The kernels are, so that tests can call each variant. */
#define PUBLIC __attribute__((visibility("default")))

/* Sizes that are multiples of this need no rest on any processor. */
#define LANES_OF_ALL 16

#define JOINED_(name, variant) name##_##variant
#define JOINED(name, variant) JOINED_(name, variant)
#define OF_VARIANT(name) JOINED(name, VARIANT)

/* A step of attention: each row of a batch has one query, and keys and values of its own. */
typedef struct {
  const float *queries;   /* [rows, row_width]: a query for each head; where it appends, then a key and a value */
  size_t row_width;       /* floats from a row to the next */
  bool appends;           /* whether the key and the value of the last position come with the query */
  bool is_int8;           /* type of keys and values, else float */
  char *keys, *values;    /* [rows, heads, capacity, width] */
  const int32_t *last;    /* [rows], the last position that is attended to, of those from 0 on */
  const float *bias;      /* added to the scores, or NULL */
  size_t bias_row, bias_head; /* floats from the bias of a row, and of a head, to the next */
  float *out;             /* [rows, heads, width], or NULL where it is `quantised` */
  uint8_t *quantised;     /* likewise: round(value * inverse_scale) + zero */
  float inverse_scale, zero;
  size_t heads, capacity, width;
  float scale;            /* of the scores */
} Attention;

/* Computes the heads `first` to `end`, not included, of those of all rows, counted through. */
typedef void (*Attend)(const Attention *, size_t first, size_t end);

/* A sum of two states and its norm, by row, as integers for the next product. */
typedef struct {
  const float *left, *right;   /* [rows, width]; `right` may be NULL */
  const float *weight, *bias;  /* [width]; `bias` may be NULL */
  float *sums, *normed;        /* [rows, width], or NULL where they are not wanted */
  uint8_t *quantised;          /* [rows, width] */
  size_t width;                /* a multiple of LANES_OF_ALL */
  bool is_centred;             /* LayerNormalization, else by the root of the mean square */
  float epsilon, inverse_scale, zero;
} Norm;

typedef void (*FindNorm)(const Norm *, size_t first_row, size_t end_row);

/* A nonlinearity, as integers for the next product; in parts of LANES_OF_ALL. */
typedef struct {
  const float *in;
  uint8_t *out;
  bool is_silu; /* else ReLU */
  float inverse_scale, zero;
} Activate;

typedef void (*FindActivated)(const Activate *, size_t first, size_t end);

/* The output projection of the tokens that each row may have. */
typedef struct {
  const float *states;      /* [rows, width], or NULL where they are `quantised` */
  const uint8_t *quantised; /* likewise */
  const float *scales;      /* of these: [rows], or of all rows; the state is (quantised - zero) * scale */
  bool is_scaled_by_row;
  uint8_t zero;
  const float *float_weights; /* [tokens, width], of states */
  const int8_t *int8_weights; /* likewise, of those that are quantised */
  const float *weight_scales; /* [tokens], of these */
  const float *bias;          /* [tokens] */
  size_t rows, width;
  const int32_t *ids; /* [rows, count], tokens; negative: none, with -INFINITY for its logit */
  size_t count;
  float *logits; /* [rows, count] */
} ListProduct;

#define LIST_PART 64

/* Computes the parts `first` to `end`, not included, of LIST_PART tokens each: the first of all rows, the second, .. */
typedef void (*FindListProduct)(const ListProduct *, size_t first, size_t end);

/* A product of the states of all rows with the weights of a layer. */
typedef struct {
  const uint8_t *quantised; /* [rows, depth] */
  size_t rows, depth;       /* the depth is a multiple of 4 */
  const int8_t *weights;    /* [panels, depth / step, panel, step]: the numbers of a step of a column stand side by side */
  size_t width;             /* of all panels, a multiple of LANES_OF_ALL; zeros stand behind it in the last */
  const int32_t *offsets;   /* [width], for each column what the zero of the states adds to its sums */
  float scale;              /* of the states */
  const float *weight_scales; /* [width] */
  const float *bias;        /* [width], or NULL */
  float *out;               /* [rows, width]: (sum + offset) * (scale * weight_scale) + bias */
} Int8Product;

/* Columns of a panel, and products that are added at a time. */
#define INT8_PANEL_AVX2 16
#define INT8_STEP_AVX2 2
#define INT8_PANEL_VNNI 64
#define INT8_STEP_VNNI 4

#define INT8_BLOCK 64

/* Computes the columns of the blocks `first` to `end`, not included, of INT8_BLOCK each. */
typedef void (*FindInt8Product)(const Int8Product *, size_t first_block, size_t end_block);

/* Packs weights [depth, width], as Int8Product has them. */
void pack_int8(const int8_t *weights, size_t depth, size_t width, size_t panel, size_t step, int8_t *packed);

/* The name of its variant that is the best for this processor; NULL where it has none. */
const char *int8_product_variant(void);

/* The name of the variant of all other kernels. */
const char *kernel_variant(void);

/* Arrays [rows, heads, capacity, width] of one shape. */
typedef struct {
  char *const *first; /* [count], where each begins */
  size_t count, heads;
  size_t head_bytes, position_bytes; /* from a head to the next, from a position to the next */
} RowArrays;

typedef struct {
  int64_t source, target, positions; /* copied from the first on */
} RowMove;

/* Copies rows in all of these arrays. No move reads a row that another writes. */
void move_rows(const RowArrays *, const RowMove *, size_t num_moves);

/* The most probable tokens of each row. */
typedef struct {
  const float *logits; /* [rows, size] */
  size_t size;
  size_t count;           /* of tokens that are wanted, at most `size` */
  const int64_t *score_ids; /* [rows], whose log-prob is wanted, too */
  int64_t *ids;           /* [rows, count], the best first; of equal ones that of the lower id */
  float *logprobs;        /* [rows, count] */
  float *score_logprobs;  /* [rows] */
} Best;

typedef void (*FindBest)(const Best *, size_t first_row, size_t end_row);

/* The log-probs of all tokens of each row, with the bits that Best gives them. */
typedef struct {
  const float *logits; /* [rows, size] */
  size_t size;
  float *logprobs; /* [rows, size] */
} LogProbs;

typedef void (*FindLogProbs)(const LogProbs *, size_t first_row, size_t end_row);

#endif
