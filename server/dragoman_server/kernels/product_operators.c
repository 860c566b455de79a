/* Products and what stands between them, as operators. What is in brackets may be left out.
 *
 * NormQuantised: see Norm in kernels.h.
 *   left float [..., D]; [right, likewise]; weight float [D]; [bias float [D]]; scale float []; zero uint8 []
 *   -> quantised uint8 [..., D]; [normed float [..., D]]; [sums float [..., D]]
 *   Attributes epsilon; is_centred: 1 for LayerNormalization, 0 for SimplifiedLayerNormalization.
 * SiluQuantised, ReluQuantised: see Activate in kernels.h.
 *   in float [..., D]; scale float []; zero uint8 [] -> uint8 [..., D]
 * Int8Product: see Int8Product in kernels.h, where this processor has it.
 *   quantised uint8 [..., D]; weights int8 [panels, D / step, panel, step]; scale float []; weight_scales float [N];
 *   offsets int32 [N]; [bias float [N]] -> float [..., N]
 * ListProduct, ListProductInt8: see ListProduct in kernels.h.
 *   states float [b, D]; weights float [V, D]; bias float [>= V]; ids int32 [b, n] -> logits float [b, n]
 *   quantised uint8 [b, D]; scales float [] or [b, 1]; zero uint8 []; weights int8 [V, D]; weight_scales, bias float
 *   [>= V]; ids int32 [b, n] -> likewise
 */

#include "operators.h"

PART_OF(norm)
PART_OF(activate)
PART_OF(list_product)
PART_OF(int8_product)

/* ---- norms and nonlinearities ------------------------------------------------------------------------------------*/

typedef struct {
  float epsilon;
  int64_t is_centred;
} NormNode;

static OrtStatus *compute_norm(void *node, OrtContext *context) {
  const NormNode *self = node;
  Tensor in[6];
  TRY(read_inputs(context, in, 6));
  const Tensor *left = &in[0], *right = &in[1], *weight = &in[2], *bias = &in[3];
  if (left->rank < 1 || left->rank > MOST_SIZES || weight->rank != 1)
    return ort_error("NormQuantised: the inputs have the wrong number of dimensions");
  size_t width = (size_t)left->sizes[left->rank - 1];
  if ((size_t)weight->sizes[0] != width || width % LANES_OF_ALL != 0 ||
      (right->data != NULL && !have_same_shape(left, right)) || (bias->data != NULL && !have_same_shape(weight, bias)))
    return ort_error("NormQuantised: the inputs do not fit together");
  Norm work = {
      .left = left->data,
      .right = right->data,
      .weight = weight->data,
      .bias = bias->data,
      .width = width,
      .is_centred = self->is_centred,
      .epsilon = self->epsilon,
  };
  if (!read_scale(&in[4], &in[5], &work.inverse_scale, &work.zero))
    return ort_error("NormQuantised: the scale or the zero is no single number");
  void *quantised, *normed, *sums;
  TRY(output_of(context, 0, left->sizes, left->rank, &quantised));
  TRY(output_of(context, 1, left->sizes, left->rank, &normed));
  TRY(output_of(context, 2, left->sizes, left->rank, &sums));
  work.quantised = quantised, work.normed = normed, work.sums = sums;
  return run(context, norm_part, &work, num_elements(left) / width, 4 * width);
}

static OrtStatus *create_norm(const OrtOperator *op, OrtTable table, const OrtInfo *info, void **node) {
  (void)op, (void)table;
  NormNode found;
  TRY(ort_float_attribute(info, "epsilon", &found.epsilon));
  TRY(ort_attribute(info, "is_centred", &found.is_centred));
  NormNode *created = malloc(sizeof *created);
  if (created == NULL) return ort_error("NormQuantised: out of memory");
  *created = found;
  *node = created;
  return NULL;
}

static OrtStatus *activated(OrtContext *context, bool is_silu) {
  Tensor in[3];
  TRY(read_inputs(context, in, 3));
  Activate work = {.in = in[0].data, .is_silu = is_silu};
  size_t count = in[0].rank > MOST_SIZES ? 1 : num_elements(&in[0]);
  if (count % LANES_OF_ALL != 0 || !read_scale(&in[1], &in[2], &work.inverse_scale, &work.zero))
    return ort_error("the inputs of a quantised nonlinearity do not fit together");
  void *out;
  TRY(output_of(context, 0, in[0].sizes, in[0].rank, &out));
  work.out = out;
  return run(context, activate_part, &work, count / LANES_OF_ALL, 4 * LANES_OF_ALL);
}

static OrtStatus *compute_silu(void *node, OrtContext *context) { return (void)node, activated(context, true); }
static OrtStatus *compute_relu(void *node, OrtContext *context) { return (void)node, activated(context, false); }

static int norm_input(const OrtOperator *op, size_t index) { return (void)op, index == 5 ? ORT_UINT8 : ORT_FLOAT; }
static int norm_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_UINT8 : ORT_FLOAT; }
static int norm_input_is_optional(const OrtOperator *op, size_t index) { return (void)op, index == 1 || index == 3; }
static int norm_output_is_optional(const OrtOperator *op, size_t index) { return (void)op, index > 0; }
static const char *norm_quantised(const OrtOperator *op) { return (void)op, "NormQuantised"; }
static int activate_input(const OrtOperator *op, size_t index) { return (void)op, index == 2 ? ORT_UINT8 : ORT_FLOAT; }
static int activate_output(const OrtOperator *op, size_t index) { return (void)op, (void)index, ORT_UINT8; }
static const char *silu_quantised(const OrtOperator *op) { return (void)op, "SiluQuantised"; }
static const char *relu_quantised(const OrtOperator *op) { return (void)op, "ReluQuantised"; }

/* ---- layers --------------------------------------------------------------------------------------------------------*/

static OrtStatus *compute_int8_product(void *node, OrtContext *context) {
  (void)node;
  Tensor in[6];
  TRY(read_inputs(context, in, 6));
  const Tensor *states = &in[0], *weights = &in[1], *scale = &in[2], *weight_scales = &in[3], *offsets = &in[4];
  const Tensor *bias = &in[5];
  if (kernels.int8_product == NULL) return ort_error("Int8Product: this processor has no such instructions");
  const size_t panel = kernels.int8_panel, step = kernels.int8_step;
  if (states->rank < 1 || states->rank > MOST_SIZES || weights->rank != 4 || (size_t)weights->sizes[2] != panel ||
      (size_t)weights->sizes[3] != step || scale->data == NULL || scale->rank != 0 || weight_scales->rank != 1)
    return ort_error("Int8Product: the inputs have the wrong number of dimensions");
  size_t depth = (size_t)states->sizes[states->rank - 1], width = (size_t)weight_scales->sizes[0];
  if (depth == 0 || (size_t)weights->sizes[1] * step != depth || width % LANES_OF_ALL != 0 ||
      (size_t)weights->sizes[0] != (width + panel - 1) / panel || !have_same_shape(weight_scales, offsets) ||
      (bias->data != NULL && !have_same_shape(weight_scales, bias)))
    return ort_error("Int8Product: the inputs do not fit together");
  Int8Product work = {
      .quantised = states->data,
      .rows = num_elements(states) / depth,
      .depth = depth,
      .weights = weights->data,
      .width = width,
      .offsets = offsets->data,
      .scale = *(const float *)scale->data,
      .weight_scales = weight_scales->data,
      .bias = bias->data,
  };
  int64_t sizes[MOST_SIZES];
  memcpy(sizes, states->sizes, sizeof sizes);
  sizes[states->rank - 1] = (int64_t)width;
  void *out;
  TRY(output_of(context, 0, sizes, states->rank, &out));
  work.out = out;
  /* A few rows wait for the weights, however few they are. */
  size_t cost = INT8_BLOCK * depth / 2 * (1 + work.rows / 4);
  return run(context, int8_product_part, &work, (width + INT8_BLOCK - 1) / INT8_BLOCK, cost);
}

static int int8_product_input(const OrtOperator *op, size_t index) {
  (void)op;
  return index == 0 ? ORT_UINT8 : index == 1 ? ORT_INT8 : index == 4 ? ORT_INT32 : ORT_FLOAT;
}
static int int8_product_input_is_optional(const OrtOperator *op, size_t index) { return (void)op, index == 5; }
static const char *int8_product(const OrtOperator *op) { return (void)op, "Int8Product"; }

/* ---- lists of tokens ----------------------------------------------------------------------------------------------*/

static bool is_matrix(const Tensor *tensor) { return tensor->data != NULL && tensor->rank == 2; }

/* A number for each token. */
static bool is_of_tokens(const Tensor *tensor, int64_t num_tokens) {
  return tensor->data != NULL && tensor->rank == 1 && tensor->sizes[0] >= num_tokens;
}

static OrtStatus *list_logits(OrtContext *context, ListProduct *work, const Tensor *states, const Tensor *weights,
                              const Tensor *bias, const Tensor *ids) {
  if (!is_matrix(states) || !is_matrix(weights) || !is_matrix(ids))
    return ort_error("ListProduct: the inputs have the wrong number of dimensions");
  int64_t rows = states->sizes[0], width = states->sizes[1], tokens = weights->sizes[0], count = ids->sizes[1];
  if (weights->sizes[1] != width || ids->sizes[0] != rows || !is_of_tokens(bias, tokens))
    return ort_error("ListProduct: the inputs do not fit together");
  work->rows = (size_t)rows, work->width = (size_t)width, work->count = (size_t)count, work->bias = bias->data, work->ids = ids->data;
  for (int64_t i = 0; i < rows * count; i++)
    if (work->ids[i] >= tokens) return ort_error("ListProduct: there is no such token");
  void *logits;
  TRY(output_of(context, 0, ids->sizes, 2, &logits));
  work->logits = logits;
  size_t parts = (work->count + LIST_PART - 1) / LIST_PART;
  return run(context, list_product_part, work, (size_t)rows * parts, LIST_PART * work->width);
}

static OrtStatus *compute_list(void *node, OrtContext *context) {
  (void)node;
  Tensor in[4];
  TRY(read_inputs(context, in, 4));
  ListProduct work = {.states = in[0].data, .float_weights = in[1].data};
  return list_logits(context, &work, &in[0], &in[1], &in[2], &in[3]);
}

static OrtStatus *compute_int8_list(void *node, OrtContext *context) {
  (void)node;
  Tensor in[7];
  TRY(read_inputs(context, in, 7));
  const Tensor *scales = &in[1], *zero = &in[2], *weights = &in[3], *weight_scales = &in[4];
  bool is_by_row = scales->rank == 2 && in[0].rank == 2 && scales->sizes[0] == in[0].sizes[0] && scales->sizes[1] == 1;
  if (scales->data == NULL || (scales->rank != 0 && !is_by_row) || zero->data == NULL || zero->rank != 0 ||
      !is_of_tokens(weight_scales, weights->rank == 2 ? weights->sizes[0] : 0))
    return ort_error("ListProductInt8: the inputs do not fit together");
  ListProduct work = {
      .quantised = in[0].data,
      .scales = scales->data,
      .is_scaled_by_row = is_by_row,
      .zero = *(const uint8_t *)zero->data,
      .int8_weights = weights->data,
      .weight_scales = weight_scales->data,
  };
  return list_logits(context, &work, &in[0], weights, &in[5], &in[6]);
}

static int list_input(const OrtOperator *op, size_t index) { return (void)op, index == 3 ? ORT_INT32 : ORT_FLOAT; }
static int int8_list_input(const OrtOperator *op, size_t index) {
  (void)op;
  return index == 0 || index == 2 ? ORT_UINT8 : index == 3 ? ORT_INT8 : index == 6 ? ORT_INT32 : ORT_FLOAT;
}
static const char *list_of_floats(const OrtOperator *op) { return (void)op, "ListProduct"; }
static const char *list_of_int8(const OrtOperator *op) { return (void)op, "ListProductInt8"; }

/* ---- all of them --------------------------------------------------------------------------------------------------*/

#pragma GCC diagnostic ignored "-Woverride-init"
Operators product_operators(void) {
  OPERATORS(
    OPERATOR(.name = norm_quantised, .create = create_norm, .compute = compute_norm, .input_type = norm_input,
             .num_inputs = six, .input_is_optional = norm_input_is_optional, .output_type = norm_output,
             .num_outputs = three, .output_is_optional = norm_output_is_optional),
    OPERATOR(.name = silu_quantised, .compute = compute_silu, .input_type = activate_input, .num_inputs = three,
             .output_type = activate_output, .num_outputs = one),
    OPERATOR(.name = relu_quantised, .compute = compute_relu, .input_type = activate_input, .num_inputs = three,
             .output_type = activate_output, .num_outputs = one),
    OPERATOR(.name = int8_product, .compute = compute_int8_product, .input_type = int8_product_input,
             .num_inputs = six, .input_is_optional = int8_product_input_is_optional, .output_type = all_floats,
             .num_outputs = one),
    OPERATOR(.name = list_of_floats, .compute = compute_list, .input_type = list_input, .num_inputs = four,
             .output_type = all_floats, .num_outputs = one),
    OPERATOR(.name = list_of_int8, .compute = compute_int8_list, .input_type = int8_list_input, .num_inputs = seven,
             .output_type = all_floats, .num_outputs = one));
}
