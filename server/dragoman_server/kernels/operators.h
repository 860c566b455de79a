/* What all operators are written with: how they read tensors and deal out their work, and how they are described. */

#ifndef DRAGOMAN_OPERATORS_H
#define DRAGOMAN_OPERATORS_H

#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "onnxruntime.h"

/* The kernels for this processor. */
typedef struct {
  Attend attend;
  FindNorm norm;
  FindActivated activate;
  FindListProduct list_product;
  FindInt8Product int8_product; /* NULL where the processor has none */
  size_t int8_panel, int8_step; /* of its weights */
  FindBest find_best;
  FindLogProbs log_probs;
} Kernels;

extern Kernels kernels;

/* Multiplications that are worth another thread. */
#define PART 100000
#define MOST_SIZES 4

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

static inline OrtStatus *read_value(const OrtValue *value, Tensor *tensor) {
  OrtShape *shape;
  TRY(ort_data(value, &tensor->data));
  TRY(ort_shape(value, &shape));
  OrtStatus *status = ort_rank(shape, &tensor->rank);
  if (status == NULL && tensor->rank <= MOST_SIZES) status = ort_sizes(shape, tensor->sizes, tensor->rank);
  ort_release_shape(shape);
  return status;
}

static inline OrtStatus *read_inputs(const OrtContext *context, Tensor *tensors, size_t count) {
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
static inline OrtStatus *output_of(OrtContext *context, size_t index, const int64_t *sizes, size_t rank, void **data) {
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

/* Defines kernel_part, which `run` is given. */
#define PART_OF(kernel)                                                                                           \
  static void kernel##_part(void *data, size_t part) {                                                            \
    const Dealt *dealt = data;                                                                                    \
    size_t first = part * dealt->count / dealt->num_parts, end = (part + 1) * dealt->count / dealt->num_parts;    \
    kernels.kernel(dealt->work, first, end);                                                                      \
  }

static inline OrtStatus *run(const OrtContext *context, void (*function)(void *, size_t), const void *work,
                             size_t count, size_t cost) {
  size_t num_parts = count * cost / PART + 1;
  if (num_parts > count) num_parts = count;
  Dealt dealt = {work, count, num_parts};
  if (num_parts > 1) return ort_in_parallel(context, function, num_parts, 0, &dealt);
  if (count) function(&dealt, 0);
  return NULL;
}

/* The scale and the zero of integers, where they are given; whether they are what they must be. */
static inline bool read_scale(const Tensor *scale, const Tensor *zero, float *inverse_scale, float *zero_point) {
  if (scale->data == NULL || zero->data == NULL || scale->rank != 0 || zero->rank != 0) return false;
  *inverse_scale = 1.0f / *(const float *)scale->data;
  *zero_point = *(const uint8_t *)zero->data;
  return true;
}

static inline size_t num_elements(const Tensor *tensor) {
  size_t count = 1;
  for (size_t axis = 0; axis < tensor->rank; axis++) count *= (size_t)tensor->sizes[axis];
  return count;
}

static inline bool have_same_shape(const Tensor *left, const Tensor *right) {
  return left->rank == right->rank && memcmp(left->sizes, right->sizes, left->rank * sizeof *left->sizes) == 0;
}

/* ---- how operators are described ----------------------------------------------------------------------------------*/

static inline OrtStatus *create_nothing(const OrtOperator *op, OrtTable table, const OrtInfo *info, void **node) {
  (void)op, (void)table, (void)info;
  *node = NULL;
  return NULL;
}

static inline size_t one(const OrtOperator *op) { return (void)op, 1; }
static inline size_t three(const OrtOperator *op) { return (void)op, 3; }
static inline size_t four(const OrtOperator *op) { return (void)op, 4; }
static inline size_t five(const OrtOperator *op) { return (void)op, 5; }
static inline size_t six(const OrtOperator *op) { return (void)op, 6; }
static inline size_t seven(const OrtOperator *op) { return (void)op, 7; }
static inline int all_floats(const OrtOperator *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
static inline const char *on_cpus(const OrtOperator *op) { return (void)op, "CPUExecutionProvider"; }
static inline int none_is_optional(const OrtOperator *op, size_t index) { return (void)op, (void)index, 0; }
static inline int in_default_memory(const OrtOperator *op, size_t index) { return (void)op, (void)index, 0; }
static inline int alike(const OrtOperator *op) { return (void)op, 1; }

#define OPERATOR(...)                                                                                       \
  {.version = ORT_VERSION, .create = create_nothing, .destroy = free, .provider = on_cpus,                \
   .input_is_optional = none_is_optional, .output_is_optional = none_is_optional,                         \
   .input_memory = in_default_memory, .fewest_variadic_inputs = alike, .variadic_inputs_are_alike = alike, \
   .fewest_variadic_outputs = alike, .variadic_outputs_are_alike = alike, __VA_ARGS__}

/* The operators of a source. */
typedef struct {
  const OrtOperator *first;
  size_t count;
} Operators;

#define OPERATORS(...)                               \
  static const OrtOperator operators[] = {__VA_ARGS__}; \
  return (Operators) { operators, sizeof operators / sizeof *operators }

Operators attention_operators(void), product_operators(void), search_operators(void);

#endif
