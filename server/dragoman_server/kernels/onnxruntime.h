/* As much of ONNX Runtime's C interface as an operator needs.
 *
 * The interface is a table to which functions are only ever added, so the places of those that are called here hold for
 * every release from 1.17 on. https://onnxruntime.ai/docs/api/c/struct_ort_api.html
 */

#ifndef DRAGOMAN_ONNXRUNTIME_H
#define DRAGOMAN_ONNXRUNTIME_H

#include <stddef.h>
#include <stdint.h>

/* The release whose table is asked for, 1.17: of any later one the functions stand in the same places. */
#define ORT_VERSION 17

typedef struct OrtStatus OrtStatus; /* NULL: no error */
typedef struct OrtValue OrtValue;
typedef struct OrtShape OrtShape;
typedef struct OrtContext OrtContext; /* of a run of an operator */
typedef struct OrtInfo OrtInfo;       /* of a node of a graph */
typedef struct OrtDomain OrtDomain;
typedef struct OrtOptions OrtOptions; /* of a session */
typedef void (*const *OrtTable)(void);

typedef struct {
  OrtTable (*table)(uint32_t version);
  const char *(*version)(void);
} OrtBase;

enum OrtType { ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_INT64 = 7 };

/* Each calls a function of this table. */
extern OrtTable ort;

#define ORT_CALL(place, result, ...) ((result(*)(__VA_ARGS__))ort[place])

static inline OrtStatus *ort_error(const char *text) {
  return ORT_CALL(0, OrtStatus *, int, const char *)(2 /* invalid argument */, text);
}
static inline OrtStatus *ort_create_domain(const char *name, OrtDomain **domain) {
  return ORT_CALL(26, OrtStatus *, const char *, OrtDomain **)(name, domain);
}
static inline OrtStatus *ort_add_operator(OrtDomain *domain, const void *op) {
  return ORT_CALL(27, OrtStatus *, OrtDomain *, const void *)(domain, op);
}
static inline OrtStatus *ort_add_domain(OrtOptions *options, OrtDomain *domain) {
  return ORT_CALL(28, OrtStatus *, OrtOptions *, OrtDomain *)(options, domain);
}
static inline OrtStatus *ort_data(const OrtValue *value, void **data) {
  return ORT_CALL(51, OrtStatus *, const OrtValue *, void **)(value, data);
}
static inline OrtStatus *ort_shape(const OrtValue *value, OrtShape **shape) {
  return ORT_CALL(65, OrtStatus *, const OrtValue *, OrtShape **)(value, shape);
}
static inline OrtStatus *ort_rank(const OrtShape *shape, size_t *rank) {
  return ORT_CALL(61, OrtStatus *, const OrtShape *, size_t *)(shape, rank);
}
static inline OrtStatus *ort_sizes(const OrtShape *shape, int64_t *sizes, size_t rank) {
  return ORT_CALL(62, OrtStatus *, const OrtShape *, int64_t *, size_t)(shape, sizes, rank);
}
static inline void ort_release_shape(OrtShape *shape) { ORT_CALL(99, void, OrtShape *)(shape); }
static inline OrtStatus *ort_attribute(const OrtInfo *info, const char *name, int64_t *value) {
  return ORT_CALL(86, OrtStatus *, const OrtInfo *, const char *, int64_t *)(info, name, value);
}
static inline OrtStatus *ort_float_attribute(const OrtInfo *info, const char *name, float *value) {
  return ORT_CALL(85, OrtStatus *, const OrtInfo *, const char *, float *)(info, name, value);
}
static inline OrtStatus *ort_num_inputs(const OrtContext *context, size_t *count) {
  return ORT_CALL(88, OrtStatus *, const OrtContext *, size_t *)(context, count);
}
static inline OrtStatus *ort_input(const OrtContext *context, size_t index, const OrtValue **value) {
  return ORT_CALL(90, OrtStatus *, const OrtContext *, size_t, const OrtValue **)(context, index, value);
}
/* NULL where the node has no such output. */
static inline OrtStatus *ort_output(OrtContext *context, size_t index, const int64_t *sizes, size_t rank,
                                    OrtValue **value) {
  return ORT_CALL(91, OrtStatus *, OrtContext *, size_t, const int64_t *, size_t, OrtValue **)(context, index, sizes,
                                                                                              rank, value);
}
/* Calls `function` for 0 to `total`, not included, on the threads of the session, in `num_parts` parts. */
static inline OrtStatus *ort_in_parallel(const OrtContext *context, void (*function)(void *, size_t), size_t total,
                                         size_t num_parts, void *data) {
  return ORT_CALL(274, OrtStatus *, const OrtContext *, void (*)(void *, size_t), size_t, size_t, void *)(
      context, function, total, num_parts, data);
}

/* What an operator is to ONNX Runtime. Functions are called without a check of whether they are there. */
typedef struct OrtOperator OrtOperator;
struct OrtOperator {
  uint32_t version;
  void *(*create_without_status)(const OrtOperator *, OrtTable, const OrtInfo *);
  const char *(*name)(const OrtOperator *);
  const char *(*provider)(const OrtOperator *);
  int (*input_type)(const OrtOperator *, size_t);
  size_t (*num_inputs)(const OrtOperator *);
  int (*output_type)(const OrtOperator *, size_t);
  size_t (*num_outputs)(const OrtOperator *);
  void (*compute_without_status)(void *, OrtContext *);
  void (*destroy)(void *);
  int (*input_is_optional)(const OrtOperator *, size_t);  /* 0: required, 1: optional */
  int (*output_is_optional)(const OrtOperator *, size_t);
  int (*input_memory)(const OrtOperator *, size_t);       /* 0: the default of the provider */
  int (*fewest_variadic_inputs)(const OrtOperator *);
  int (*variadic_inputs_are_alike)(const OrtOperator *);
  int (*fewest_variadic_outputs)(const OrtOperator *);
  int (*variadic_outputs_are_alike)(const OrtOperator *);
  OrtStatus *(*create)(const OrtOperator *, OrtTable, const OrtInfo *, void **);
  OrtStatus *(*compute)(void *, OrtContext *);
  void *later[8]; /* of releases after 1.17, which are not asked for */
};

#endif
