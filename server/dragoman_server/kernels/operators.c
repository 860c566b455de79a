/* The operators of the domain `dragoman`, for ONNX Runtime on CPUs.
 *
 * RowAttention and RowAttentionInt8: a step of attention, see Attention in kernels.h.
 *   queries float [b, 1, w], w = H * K, or 3 * H * K where the key and value of the last position follow; keys, values
 *   float or int8 [b, H, C, K]; last int32 [b]; bias float [1 or b, 1 or H, 1, n], which may be left out
 *   -> mixed float [b, 1, H * K]; keys, values, to be bound to the same memory. Attribute num_heads: H.
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
  void log_probs_##variant(const LogProbs *, size_t, size_t);
#define CHOOSE(variant) attend = attend_##variant, find_best = find_best_##variant, log_probs = log_probs_##variant

static Attend attend;
static FindBest find_best;
static FindLogProbs log_probs;

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

static OrtStatus *output_of(OrtContext *context, size_t index, const int64_t *sizes, size_t rank, void **data) {
  OrtValue *value;
  TRY(ort_output(context, index, sizes, rank, &value));
  return ort_data(value, data);
}

/* Part of a kernel's work, for ort_in_parallel: `count` items, dealt to `num_parts`. */
typedef struct {
  const void *work;
  size_t count, num_parts;
} Dealt;

static void attend_part(void *data, size_t part) {
  const Dealt *dealt = data;
  attend(dealt->work, part * dealt->count / dealt->num_parts, (part + 1) * dealt->count / dealt->num_parts);
}

static void find_best_part(void *data, size_t part) {
  const Dealt *dealt = data;
  find_best(dealt->work, part * dealt->count / dealt->num_parts, (part + 1) * dealt->count / dealt->num_parts);
}

static void log_probs_part(void *data, size_t part) {
  const Dealt *dealt = data;
  log_probs(dealt->work, part * dealt->count / dealt->num_parts, (part + 1) * dealt->count / dealt->num_parts);
}

static OrtStatus *run(const OrtContext *context, void (*function)(void *, size_t), const void *work, size_t count,
                      size_t cost) {
  size_t num_parts = count * cost / PART + 1;
  if (num_parts > count) num_parts = count;
  Dealt dealt = {work, count, num_parts};
  if (num_parts > 1) return ort_in_parallel(context, function, num_parts, 0, &dealt);
  if (count) function(&dealt, 0);
  return NULL;
}

/* ---- attention ---------------------------------------------------------------------------------------------------*/

typedef struct {
  int64_t num_heads;
  bool is_int8;
} AttentionNode;

static OrtStatus *compute_attention(void *node, OrtContext *context) {
  const AttentionNode *self = node;
  Tensor in[5];
  TRY(read_inputs(context, in, 5));
  const Tensor *queries = &in[0], *keys = &in[1], *values = &in[2], *last = &in[3], *bias = &in[4];
  if (queries->rank != 3 || keys->rank != 4 || values->rank != 4 || last->rank != 1)
    return ort_error("RowAttention: the inputs have the wrong number of dimensions");
  int64_t rows = queries->sizes[0], heads = self->num_heads, capacity = keys->sizes[2], width = keys->sizes[3];
  bool appends = queries->sizes[2] == 3 * heads * width;
  if (queries->sizes[1] != 1 || (!appends && queries->sizes[2] != heads * width) || keys->sizes[0] != rows ||
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
  attention.keys = grown_keys, attention.values = grown_values, attention.out = out;
  return run(context, attend_part, &attention, (size_t)(rows * heads), (size_t)((longest + 1) * width));
}

static OrtStatus *create_attention(const OrtOperator *op, OrtTable table, const OrtInfo *info, void **node) {
  (void)table;
  int64_t num_heads;
  TRY(ort_attribute(info, "num_heads", &num_heads));
  AttentionNode *created = malloc(sizeof *created);
  if (created == NULL) return ort_error("RowAttention: out of memory");
  *created = (AttentionNode){num_heads, op->output_type(op, 1) == ORT_INT8};
  *node = created;
  return NULL;
}

static int attention_input(const OrtOperator *op, size_t index) {
  return index == 3 ? ORT_INT32 : index == 1 || index == 2 ? op->output_type(op, index) : ORT_FLOAT;
}
static int float_output(const OrtOperator *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
static int int8_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_FLOAT : ORT_INT8; }
static size_t five(const OrtOperator *op) { return (void)op, 5; }
static size_t one(const OrtOperator *op) { return (void)op, 1; }
static size_t three(const OrtOperator *op) { return (void)op, 3; }
static int bias_is_optional(const OrtOperator *op, size_t index) { return (void)op, index == 4; }
static const char *float_attention(const OrtOperator *op) { return (void)op, "RowAttention"; }
static const char *int8_attention(const OrtOperator *op) { return (void)op, "RowAttentionInt8"; }

/* ---- the best tokens ---------------------------------------------------------------------------------------------*/

static OrtStatus *compute_best(void *node, OrtContext *context) {
  (void)node;
  Tensor in[3];
  TRY(read_inputs(context, in, 3));
  if (in[0].rank != 2 || in[1].rank != 1 || in[2].rank != 2)
    return ort_error("BestTokens: the inputs have the wrong number of dimensions");
  int64_t rows = in[0].sizes[0], size = in[0].sizes[1], count = *(const int64_t *)in[1].data;
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

#define OPERATOR(create_, compute_, name_, input_type_, num_inputs_, output_type_, num_outputs_, input_is_optional_) \
  {                                                                                                                \
    .version = ORT_VERSION, .create = create_, .compute = compute_, .destroy = free, .name = name_,                \
    .provider = on_cpus, .input_type = input_type_, .num_inputs = num_inputs_, .output_type = output_type_,        \
    .num_outputs = num_outputs_, .input_is_optional = input_is_optional_, .output_is_optional = none_is_optional,         \
    .input_memory = in_default_memory, .fewest_variadic_inputs = alike, .variadic_inputs_are_alike = alike,            \
    .fewest_variadic_outputs = alike, .variadic_outputs_are_alike = alike                                              \
  }

static const OrtOperator operators[] = {
    OPERATOR(create_attention, compute_attention, float_attention, attention_input, five, float_output, three, bias_is_optional),
    OPERATOR(create_attention, compute_attention, int8_attention, attention_input, five, int8_output, three, bias_is_optional),
    OPERATOR(create_nothing, compute_best, best_tokens, best_input, three, best_output, three, none_is_optional),
    OPERATOR(create_nothing, compute_log_probs, all_log_probs, all_floats, one, all_floats, one, none_is_optional),
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
