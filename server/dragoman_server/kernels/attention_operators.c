/* A step of attention, as an operator. What is in brackets may be left out.
 *
 * RowAttention, RowAttentionInt8, RowAttentionQuantised: a step of attention, see Attention in kernels.h.
 *   queries float [b, 1, w], w = H * K, or 3 * H * K where the key and value of the last position follow; keys, values
 *   [b, H, C, K], float or, of the other two, int8; last int32 [b]; [bias float [1 or b, 1 or H, 1, n]]; of the last
 *   one scale float [], zero uint8 []
 *   -> mixed [b, 1, H * K], float or, of the last one, uint8; keys, values, to be bound to the same memory
 *   Attribute num_heads: H.
 */

#include <math.h>

#include "operators.h"

PART_OF(attend)

typedef struct {
  int64_t num_heads;
  bool is_int8, is_quantised;
} AttentionNode;

static OrtStatus *compute_attention(void *node, OrtContext *context) {
  const AttentionNode *self = node;
  Tensor in[7];
  TRY(read_inputs(context, in, 7));
  const Tensor *queries = &in[0], *keys = &in[1], *values = &in[2], *last = &in[3], *bias = &in[4];
  if (queries->rank != 3 || keys->rank != 4 || values->rank != 4 || last->rank != 1)
    return ort_error("RowAttention: the inputs have the wrong number of dimensions");
  int64_t rows = queries->sizes[0], heads = self->num_heads, capacity = keys->sizes[2], width = keys->sizes[3];
  bool appends = queries->sizes[2] == 3 * heads * width;
  if (width % LANES_OF_ALL != 0 || queries->sizes[1] != 1 || (!appends && queries->sizes[2] != heads * width) ||
      keys->sizes[0] != rows || keys->sizes[1] != heads || last->sizes[0] != rows ||
      memcmp(keys->sizes, values->sizes, sizeof keys->sizes) != 0)
    return ort_error("RowAttention: the inputs do not fit together");
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; row++) {
    int64_t position = ((const int32_t *)last->data)[row];
    if (position < 0 || position >= capacity) return ort_error("RowAttention: there is no such position");
    longest = position > longest ? position : longest;
  }
  if (bias->data != NULL && (bias->rank != 4 || bias->sizes[3] <= longest ||
                             (bias->sizes[0] != 1 && bias->sizes[0] != rows) ||
                             (bias->sizes[1] != 1 && bias->sizes[1] != heads)))
    return ort_error("RowAttention: the bias does not fit");
  Attention attention = {
      .queries = queries->data,
      .row_width = (size_t)queries->sizes[2],
      .appends = appends,
      .is_int8 = self->is_int8,
      .last = last->data,
      .bias = bias->data,
      .heads = (size_t)heads,
      .capacity = (size_t)capacity,
      .width = (size_t)width,
      .scale = 1.0f / sqrtf((float)width),
  };
  if (self->is_quantised && !read_scale(&in[5], &in[6], &attention.inverse_scale, &attention.zero))
    return ort_error("RowAttention: the scale or the zero is no single number");
  if (bias->data != NULL) {
    attention.bias_head = bias->sizes[1] == 1 ? 0 : (size_t)bias->sizes[3];
    attention.bias_row = bias->sizes[0] == 1 ? 0 : (size_t)(bias->sizes[1] * bias->sizes[3]);
  }
  void *out, *grown_keys, *grown_values;
  TRY(output_of(context, 0, (int64_t[]){rows, 1, heads * width}, 3, &out));
  TRY(output_of(context, 1, keys->sizes, 4, &grown_keys));
  TRY(output_of(context, 2, keys->sizes, 4, &grown_values));
  size_t bytes = (size_t)(rows * heads * capacity * width) * (self->is_int8 ? sizeof(int8_t) : sizeof(float));
  if (grown_keys != keys->data) memcpy(grown_keys, keys->data, bytes);
  if (grown_values != values->data) memcpy(grown_values, values->data, bytes);
  attention.keys = grown_keys, attention.values = grown_values;
  if (self->is_quantised) attention.quantised = out;
  else attention.out = out;
  return run(context, attend_part, &attention, (size_t)(rows * heads), (size_t)((longest + 1) * width));
}

static OrtStatus *create_attention(const OrtOperator *op, OrtTable table, const OrtInfo *info, void **node) {
  (void)table;
  int64_t num_heads;
  TRY(ort_attribute(info, "num_heads", &num_heads));
  AttentionNode *created = malloc(sizeof *created);
  if (created == NULL) return ort_error("RowAttention: out of memory");
  *created = (AttentionNode){num_heads, op->output_type(op, 1) == ORT_INT8, op->output_type(op, 0) == ORT_UINT8};
  *node = created;
  return NULL;
}

static int attention_input(const OrtOperator *op, size_t index) {
  if (index == 1 || index == 2) return op->output_type(op, index);
  return index == 3 ? ORT_INT32 : index == 6 ? ORT_UINT8 : ORT_FLOAT;
}
static int int8_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_FLOAT : ORT_INT8; }
static int quantised_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_UINT8 : ORT_INT8; }
static int bias_is_optional(const OrtOperator *op, size_t index) { return (void)op, index == 4; }
static const char *float_attention(const OrtOperator *op) { return (void)op, "RowAttention"; }
static const char *int8_attention(const OrtOperator *op) { return (void)op, "RowAttentionInt8"; }
static const char *quantised_attention(const OrtOperator *op) { return (void)op, "RowAttentionQuantised"; }

#pragma GCC diagnostic ignored "-Woverride-init"
Operators attention_operators(void) {
  OPERATORS(
    OPERATOR(.name = float_attention, .create = create_attention, .compute = compute_attention,
             .input_type = attention_input, .num_inputs = five, .input_is_optional = bias_is_optional,
             .output_type = all_floats, .num_outputs = three),
    OPERATOR(.name = int8_attention, .create = create_attention, .compute = compute_attention,
             .input_type = attention_input, .num_inputs = five, .input_is_optional = bias_is_optional,
             .output_type = int8_output, .num_outputs = three),
    OPERATOR(.name = quantised_attention, .create = create_attention, .compute = compute_attention,
             .input_type = attention_input, .num_inputs = seven, .input_is_optional = bias_is_optional,
             .output_type = quantised_output, .num_outputs = three));
}
