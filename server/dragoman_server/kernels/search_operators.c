/* The search for the best tokens, as operators. What is in brackets may be left out.
 *
 * BestTokens: see Best in kernels.h.
 *   logits float [b, V]; count int64 [1]; score_ids int64 [b, 1]
 *   -> ids int64 [b, k]; logprobs float [b, k]; score_logprobs float [b, 1]
 * LogProbs: logits float [a, V] -> log-probs float [a, V], with the bits that BestTokens gives.
 */

#include "operators.h"

PART_OF(find_best)
PART_OF(log_probs)

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

static int best_input(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_FLOAT : ORT_INT64; }
static int best_output(const OrtOperator *op, size_t index) { return (void)op, index == 0 ? ORT_INT64 : ORT_FLOAT; }
static const char *best_tokens(const OrtOperator *op) { return (void)op, "BestTokens"; }
static const char *all_log_probs(const OrtOperator *op) { return (void)op, "LogProbs"; }

#pragma GCC diagnostic ignored "-Woverride-init"
Operators search_operators(void) {
  OPERATORS(
    OPERATOR(.name = best_tokens, .compute = compute_best, .input_type = best_input, .num_inputs = three,
             .output_type = best_output, .num_outputs = three),
    OPERATOR(.name = all_log_probs, .compute = compute_log_probs, .input_type = all_floats, .num_inputs = one,
             .output_type = all_floats, .num_outputs = one));
}
