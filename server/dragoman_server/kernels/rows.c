/* Moves of rows within arrays of keys and values. */

#include <string.h>

#include "kernels.h"

PUBLIC void move_rows(const RowArrays *arrays, const RowMove *moves, size_t num_moves) {
  size_t row_bytes = arrays->heads * arrays->head_bytes;
  for (size_t i = 0; i < arrays->count; i++) {
    for (const RowMove *move = moves; move < moves + num_moves; move++) {
      const char *from = arrays->first[i] + (size_t)move->source * row_bytes;
      char *to = arrays->first[i] + (size_t)move->target * row_bytes;
      size_t bytes = (size_t)move->positions * arrays->position_bytes;
      for (size_t head = 0; head < arrays->heads; head++)
        memcpy(to + head * arrays->head_bytes, from + head * arrays->head_bytes, bytes);
    }
  }
}
