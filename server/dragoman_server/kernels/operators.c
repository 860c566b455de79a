/* The operators of the domain `dragoman`, for ONNX Runtime on CPUs. What is in brackets may be left out.
 *
 * RowAttention, RowAttentionInt8, RowAttentionQuantised: a step of attention, see Attention in kernels.h.
 *   queries float [b, 1, w], w = H * K, or 3 * H * K where the key and value of the last position follow; keys, values
 *   [b, H, C, K], float or, of the other two, int8; last int32 [b]; [bias float [1 or b, 1 or H, 1, n]]; of the last one
 *   scale float [], zero uint8 []
 *   -> mixed [b, 1, H * K], float or, of the last one, uint8; keys, values, to be bound to the same memory
 *   Attribute num_heads: H.
 * NormQuantised: see Norm in kernels.h.
 *   left float [..., D]; [right, likewise]; weight float [D]; [bias float [D]]; scale float []; zero uint8 []
 *   -> quantised uint8 [..., D]; [normed float [..., D]]; [sums float [..., D]]
 *   Attributes epsilon; is_centred: 1 for LayerNormalization, 0 for SimplifiedLayerNormalization.
 * SiluQuantised, ReluQuantised: see Activate in kernels.h.
 *   in float [..., D]; scale float []; zero uint8 [] -> uint8 [..., D]
 * ListProduct, ListProductInt8: see ListProduct in kernels.h.
 *   states float [b, D]; weights float [V, D]; bias float [>= V]; ids int32 [b, n] -> logits float [b, n]
 *   quantised uint8 [b, D]; scales float [] or [b, 1]; zero uint8 []; weights int8 [V, D]; weight_scales, bias float
 *   [>= V]; ids int32 [b, n] -> likewise
 * BestTokens: see Best in kernels.h.
 *   logits float [b, V]; count int64 [1]; score_ids int64 [b, 1]
 *   -> ids int64 [b, k]; logprobs float [b, k]; score_logprobs float [b, 1]
 * LogProbs: logits float [a, V] -> log-probs float [a, V], with the bits that BestTokens gives.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "onnxruntime.h"

/* Multiplications that are worth another thread. */
#define PART 100000
#define MOST_SIZES 4

#define DECLARE(variant)                              \
  void attend_##variant(const Attention *, size_t, size_t); \
  void find_best_##variant(const Best *, size_t, size_t);  \
  void log_probs_##variant(const LogProbs *, size_t, size_t); \
  void norm_##variant(const Norm *, size_t, size_t);       \
  void activate_##variant(const Activate *, size_t, size_t);     \
  void list_product_##variant(const ListProduct *, size_t, size_t);
#define CHOOSE(variant)                                                                                \
  (attend = attend_##variant, find_best = find_best_##variant, log_probs = log_probs_##variant, norm = norm_##variant, \
   activate = activate_##variant, list_product = list_product_##variant)

static Attend attend;
static FindBest find_best;
static FindLogProbs log_probs;
static FindNorm norm;
static FindActivated activate;
static FindListProduct list_product;

#if defined(__x86_64__)
DECLARE(sse2)
DECLARE(avx2)
DECLARE(avx512)

static void choose_variant(void) {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    CHOOSE(avx512);
  else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    CHOOSE(avx2);
  else
    CHOOSE(sse2);
}
#else
DECLARE(base)

static void choose_variant(void) { CHOOSE(base); }
#endif

#define TRY(call)                   \
  do {                              \
    OrtStatus *status = (call);     \
    if (status != NULL) return status; \
  } while (0)

typedef struct {
  void *data; /* NULL: it was left out */
  size_t rank;
  int64_t sizes[MOST_SIZES];
} Tensor;

static OrtStatus *read_value(const OrtValue *value, Tensor *tensor) {
  OrtShape *shape;
  TRY(ort_data(value, &tensor->data));
  TRY(ort_shape(value, &shape));
  OrtStatus *status = ort_rank(shape, &tensor->rank);
  if (status == NULL && tensor->rank <= MOST_SIZES) status = ort_sizes(shape, tensor->sizes, tensor->rank);
  ort_release_shape(shape);
  return status;
}

static OrtStatus *read_inputs(const OrtContext *context, Tensor *tensors, size_t count) {
  size_t given;
  TRY(ort_num_inputs(context, &given));
  memset(tensors, 0, count * sizeof *tensors);
  for (size_t i = 0; i < count && i < given; i++) {
    const OrtValue *value = NULL;
    TRY(ort_input(context, i, &value));
    if (value != NULL) TRY(read_value(value, &tensors[i]));
  }
  return NULL;
}

/* NULL where nobody wants it. */
static OrtStatus *output_of(OrtContext *context, size_t index, const int64_t *sizes, size_t rank, void **data) {
  OrtValue *value = NULL;
  *data = NULL;
  TRY(ort_output(context, index, sizes, rank, &value));
  return value == NULL ? NULL : ort_data(value, data);
}

/* Part of a kernel's work, for ort_in_parallel: `count` items, dealt to `num_parts`. */
typedef struct {
  const void *work;
  size_t count, num_parts;
} Dealt;

#define PART_OF(kernel)                                                                                            \
  static void kernel##_part(void *data, size_t part) {                                                             \
    const Dealt *dealt = data;                                                                                     \
    kernel(dealt->work, part * dealt->count / dealt->num_parts, (part + 1) * dealt->count / dealt->num_parts);     \
  }
PART_OF(attend)
PART_OF(find_best)
PART_OF(log_probs)
PART_OF(norm)
PART_OF(activate)
PART_OF(list_product)

static OrtStatus *run(const OrtContext *context, void (*function)(void *, size_t), const void *work, size_t count,
                      size_t cost) {
  size_t num_parts = count * cost / PART + 1;
  if (num_parts > count) num_parts = count;
  Dealt dealt = {work, count, num_parts};
  if (num_parts > 1) return ort_in_parallel(context, function, num_parts, 0, &dealt);
  if (count) function(&dealt, 0);
  return NULL;
}

/* The scale and the zero of integers, where they are given; whether they are what they must be. */
static bool read_scale(const Tensor *scale, const Tensor *zero, float *inverse_scale, float *zero_point) {
  if (scale->data == NULL || zero->data == NULL || scale->rank != 0 || zero->rank != 0) return false;
  *inverse_scale = 1.0f / *(const float *)scale->data;
  *zero_point = *(const uint8_t *)zero->data;
  return true;
}

static size_t num_elements(const Tensor *tensor) {
  size_t count = 1;
  for (size_t axis = 0; axis < tensor->rank; axis++) count *= (size_t)tensor->sizes[axis];
  return count;
}

static bool have_same_shape(const Tensor *left, const Tensor *right) {
  return left->rank == right->rank && memcmp(left->sizes, right->sizes, left->rank * sizeof *left->sizes) == 0;
}

/* ---- attention ---------------------------------------------------------------------------------------------------*/

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
  if (width % LANES_OF_ALL != 0 || queries->sizes[1] != 1 || (!appends && queries->sizes[2] != heads * width) || keys->sizes[0] != rows ||
      keys->sizes[1] != heads || last->sizes[0] != rows || memcmp(keys->sizes, values->sizes, sizeof keys->sizes) != 0)
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
static int float_output(const OrtOperator *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
static int int8_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_FLOAT : ORT_INT8; }
static int quantised_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_UINT8 : ORT_INT8; }
static size_t five(const OrtOperator *op) { return (void)op, 5; }
static size_t seven(const OrtOperator *op) { return (void)op, 7; }
static size_t one(const OrtOperator *op) { return (void)op, 1; }
static size_t three(const OrtOperator *op) { return (void)op, 3; }
static int bias_is_optional(const OrtOperator *op, size_t index) { return (void)op, index == 4; }
static const char *float_attention(const OrtOperator *op) { return (void)op, "RowAttention"; }
static const char *int8_attention(const OrtOperator *op) { return (void)op, "RowAttentionInt8"; }
static const char *quantised_attention(const OrtOperator *op) { return (void)op, "RowAttentionQuantised"; }

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
static size_t six(const OrtOperator *op) { return (void)op, 6; }
static const char *norm_quantised(const OrtOperator *op) { return (void)op, "NormQuantised"; }
static int activate_input(const OrtOperator *op, size_t index) { return (void)op, index == 2 ? ORT_UINT8 : ORT_FLOAT; }
static int activate_output(const OrtOperator *op, size_t index) { return (void)op, (void)index, ORT_UINT8; }
static const char *silu_quantised(const OrtOperator *op) { return (void)op, "SiluQuantised"; }
static const char *relu_quantised(const OrtOperator *op) { return (void)op, "ReluQuantised"; }

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
  work->width = (size_t)width, work->count = (size_t)count, work->bias = bias->data, work->ids = ids->data;
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
static size_t four(const OrtOperator *op) { return (void)op, 4; }
static const char *list_of_floats(const OrtOperator *op) { return (void)op, "ListProduct"; }
static const char *list_of_int8(const OrtOperator *op) { return (void)op, "ListProductInt8"; }

/* ---- the best tokens ---------------------------------------------------------------------------------------------*/

static OrtStatus *compute_best(void *node, OrtContext *context) {
  (void)node;
  Tensor in[3];
  TRY(read_inputs(context, in, 3));
  if (in[0].rank != 2 || in[1].rank != 1 || in[2].rank != 2)
    return ort_error("BestTokens: the inputs have the wrong number of dimensions");
  int64_t rows = in[0].sizes[0], size = in[0].sizes[1];
  int64_t count = in[1].sizes[0] == 1 ? *(const int64_t *)in[1].data : 0;
  if (count < 1 || count > size || in[2].sizes[0] != rows || in[2].sizes[1] != 1)
    return ort_error("BestTokens: the inputs do not fit together");
  for (int64_t row = 0; row < rows; row++) {
    int64_t id = ((const int64_t *)in[2].data)[row];
    if (id < 0 || id >= size) return ort_error("BestTokens: there is no such token");
  }
  void *ids, *logprobs, *score_logprobs;
  TRY(output_of(context, 0, (int64_t[]){rows, count}, 2, &ids));
  TRY(output_of(context, 1, (int64_t[]){rows, count}, 2, &logprobs));
  TRY(output_of(context, 2, (int64_t[]){rows, 1}, 2, &score_logprobs));
  Best best = {in[0].data, (size_t)size, (size_t)count, in[2].data, ids, logprobs, score_logprobs};
  return run(context, find_best_part, &best, (size_t)rows, (size_t)size);
}

static OrtStatus *compute_log_probs(void *node, OrtContext *context) {
  (void)node;
  Tensor logits;
  TRY(read_inputs(context, &logits, 1));
  if (logits.rank != 2) return ort_error("LogProbs: the logits have the wrong number of dimensions");
  void *logprobs;
  TRY(output_of(context, 0, logits.sizes, 2, &logprobs));
  LogProbs all = {logits.data, (size_t)logits.sizes[1], logprobs};
  return run(context, log_probs_part, &all, (size_t)logits.sizes[0], all.size);
}

static OrtStatus *create_nothing(const OrtOperator *op, OrtTable table, const OrtInfo *info, void **node) {
  (void)op, (void)table, (void)info;
  *node = NULL;
  return NULL;
}

static int best_input(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_FLOAT : ORT_INT64; }
static int best_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_INT64 : ORT_FLOAT; }
static const char *best_tokens(const OrtOperator *op) { return (void)op, "BestTokens"; }
static int all_floats(const OrtOperator *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
static const char *all_log_probs(const OrtOperator *op) { return (void)op, "LogProbs"; }

/* ---- what ONNX Runtime calls -------------------------------------------------------------------------------------*/

static const char *on_cpus(const OrtOperator *op) { return (void)op, "CPUExecutionProvider"; }
static int none_is_optional(const OrtOperator *op, size_t index) { return (void)op, (void)index, 0; }
static int in_default_memory(const OrtOperator *op, size_t index) { return (void)op, (void)index, 0; }
static int alike(const OrtOperator *op) { return (void)op, 1; }

#define OPERATOR(...)                                                                                       \
  {.version = ORT_VERSION, .create = create_nothing, .destroy = free, .provider = on_cpus,                \
   .input_is_optional = none_is_optional, .output_is_optional = none_is_optional,                         \
   .input_memory = in_default_memory, .fewest_variadic_inputs = alike, .variadic_inputs_are_alike = alike, \
   .fewest_variadic_outputs = alike, .variadic_outputs_are_alike = alike, __VA_ARGS__}

#pragma GCC diagnostic ignored "-Woverride-init"
static const OrtOperator operators[] = {
    OPERATOR(.name = float_attention, .create = create_attention, .compute = compute_attention,
             .input_type = attention_input, .num_inputs = five, .input_is_optional = bias_is_optional,
             .output_type = float_output, .num_outputs = three),
    OPERATOR(.name = int8_attention, .create = create_attention, .compute = compute_attention,
             .input_type = attention_input, .num_inputs = five, .input_is_optional = bias_is_optional,
             .output_type = int8_output, .num_outputs = three),
    OPERATOR(.name = quantised_attention, .create = create_attention, .compute = compute_attention,
             .input_type = attention_input, .num_inputs = seven, .input_is_optional = bias_is_optional,
             .output_type = quantised_output, .num_outputs = three),
    OPERATOR(.name = norm_quantised, .create = create_norm, .compute = compute_norm, .input_type = norm_input,
             .num_inputs = six, .input_is_optional = norm_input_is_optional, .output_type = norm_output,
             .num_outputs = three, .output_is_optional = norm_output_is_optional),
    OPERATOR(.name = silu_quantised, .compute = compute_silu, .input_type = activate_input, .num_inputs = three,
             .output_type = activate_output, .num_outputs = one),
    OPERATOR(.name = relu_quantised, .compute = compute_relu, .input_type = activate_input, .num_inputs = three,
             .output_type = activate_output, .num_outputs = one),
    OPERATOR(.name = list_of_floats, .compute = compute_list, .input_type = list_input, .num_inputs = four,
             .output_type = all_floats, .num_outputs = one),
    OPERATOR(.name = list_of_int8, .compute = compute_int8_list, .input_type = int8_list_input, .num_inputs = seven,
             .output_type = all_floats, .num_outputs = one),
    OPERATOR(.name = best_tokens, .compute = compute_best, .input_type = best_input, .num_inputs = three,
             .output_type = best_output, .num_outputs = three),
    OPERATOR(.name = all_log_probs, .compute = compute_log_probs, .input_type = all_floats, .num_inputs = one,
             .output_type = all_floats, .num_outputs = one),
};

/* ONNX Runtime calls this by its name for each session that uses the library; the domain serves all of them. */
PUBLIC OrtStatus *RegisterCustomOps(OrtOptions *options, const OrtBase *base) {
  static OrtDomain *domain;
  if (domain == NULL) {
    ort = base->table(ORT_VERSION);
    choose_variant();
    OrtDomain *created;
    TRY(ort_create_domain("dragoman", &created));
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++) TRY(ort_add_operator(created, &operators[i]));
    domain = created;
  }
  return ort_add_domain(options, domain);
}
