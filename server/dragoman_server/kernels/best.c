/* The log-softmax of each row of logits: its largest elements, or all.
 *
 * A row's result depends on nothing but its own logits.
 */

#include <math.h>

#include "kernels.h"
#include "vectors.h"

/* Columns whose maximum is kept, to look for the best tokens in few of them. */
#define BLOCK 64
/* Columns that are summed up together. */
#define PART 1024

/* Of two tokens, whether the first is worse: less probable, or as probable and of the higher id. */
INLINE bool is_worse(float logit, int64_t id, float other_logit, int64_t other_id) {
  return logit < other_logit || (logit == other_logit && id > other_id);
}

/* Puts a token into a heap whose worst is first, at a place whose own is to be overwritten: further down until no child
 * is worse. */
INLINE void sift_down(float *logits, int64_t *ids, size_t count, size_t place, float logit, int64_t id) {
  for (size_t child; (child = 2 * place + 1) < count; place = child) {
    if (child + 1 < count && is_worse(logits[child + 1], ids[child + 1], logits[child], ids[child])) child++;
    if (!is_worse(logits[child], ids[child], logit, id)) break;
    logits[place] = logits[child], ids[place] = ids[child];
  }
  logits[place] = logit, ids[place] = id;
}

INLINE float maximum_of(const float *logits, size_t count) {
  floats peaks = all(-INFINITY);
  size_t i = 0;
  for (; i + LANES <= count; i += LANES) peaks = larger(load(logits + i), peaks);
  float peak = largest(peaks);
  for (; i < count; i++) peak = logits[i] > peak ? logits[i] : peak;
  return peak;
}

INLINE float log_sum_of_exponentials(const float *logits, size_t count, float peak) {
  double total = 0.0; /* of parts, so that many small numbers are not lost beside their sum */
  for (size_t start = 0; start < count; start += PART) {
    size_t end = start + PART < count ? start + PART : count, i = start;
    floats sums[2] = {all(0.0f), all(0.0f)};
    for (; i + 2 * LANES <= end; i += 2 * LANES) {
      sums[0] += exponential(load(logits + i) - peak);
      sums[1] += exponential(load(logits + i + LANES) - peak);
    }
    for (; i < end; i += LANES) {
      float rest[LANES];
      for (size_t lane = 0; lane < LANES; lane++) rest[lane] = i + lane < end ? logits[i + lane] : -INFINITY;
      sums[0] += exponential(load(rest) - peak);
    }
    total += sum(sums[0] + sums[1]);
  }
  return (float)log(total);
}

/* The same for one token as for all: the operations and their order are. */
INLINE float log_prob(float logit, float peak, float log_sum) { return logit - peak - log_sum; }

PUBLIC void OF_VARIANT(log_probs)(const LogProbs *l, size_t first_row, size_t end_row) {
  for (size_t row = first_row; row < end_row; row++) {
    const float *logits = l->logits + row * l->size;
    float peak = maximum_of(logits, l->size), log_sum = log_sum_of_exponentials(logits, l->size, peak);
    for (size_t id = 0; id < l->size; id++) l->logprobs[row * l->size + id] = log_prob(logits[id], peak, log_sum);
  }
}

PUBLIC void OF_VARIANT(find_best)(const Best *b, size_t first_row, size_t end_row) {
  size_t num_blocks = (b->size + BLOCK - 1) / BLOCK;
  float peaks[num_blocks];
  for (size_t row = first_row; row < end_row; row++) {
    const float *logits = b->logits + row * b->size;
    float peak = -INFINITY;
    for (size_t block = 0; block < num_blocks; block++) {
      size_t start = block * BLOCK, left = b->size - start;
      peaks[block] = maximum_of(logits + start, left < BLOCK ? left : BLOCK);
      peak = peaks[block] > peak ? peaks[block] : peak;
    }
    float log_sum = log_sum_of_exponentials(logits, b->size, peak);
    /* The best so far are kept where they are to be returned, with their logits for log-probs. */
    int64_t *ids = b->ids + row * b->count;
    float *found = b->logprobs + row * b->count;
    for (size_t id = 0; id < b->count; id++) found[id] = logits[id], ids[id] = (int64_t)id;
    for (size_t place = b->count / 2; place-- > 0;)
      sift_down(found, ids, b->count, place, found[place], ids[place]);
    for (size_t block = b->count / BLOCK; block < num_blocks; block++) {
      if (peaks[block] <= found[0]) continue;
      size_t end = (block + 1) * BLOCK < b->size ? (block + 1) * BLOCK : b->size;
      for (size_t id = block * BLOCK > b->count ? block * BLOCK : b->count; id < end; id++)
        if (logits[id] > found[0]) sift_down(found, ids, b->count, 0, logits[id], (int64_t)id);
    }
    for (size_t left = b->count; left-- > 1;) { /* the worst goes to the end */
      float logit = found[left];
      int64_t id = ids[left];
      found[left] = found[0], ids[left] = ids[0];
      sift_down(found, ids, left, 0, logit, id);
    }
    for (size_t i = 0; i < b->count; i++) found[i] = log_prob(found[i], peak, log_sum);
    b->score_logprobs[row] = log_prob(logits[b->score_ids[row]], peak, log_sum);
  }
}
