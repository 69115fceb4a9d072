/* The two functions of a kind of quantized weight. Before this is included, its file defines
 *   BLOCK, TILE_ROWS: outputs of a block, rows that a tile takes at most;
 *   WEIGHTS_PER_BYTE of `Packed`; SCALES of type `Scale` for an output and group of inputs;
 *   pack_block, tile: what packs a block, and what multiplies some rows by it; PACK, MULTIPLY: the functions' names. */

/* Quantize and pack weight [outputs][inputs]; returns 0, or 1 where memory ran out. */
int PACK(const float *weight, long outputs, long inputs, long group, Packed *packed, Scale *scales) {
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    int8_t *values = malloc((size_t)(BLOCK * inputs));
    failed = values == NULL;
    long first, last;
    my_share(outputs / BLOCK, &first, &last);
    for (long b = first; b < last && !failed; b++)
      pack_block(weight + b * BLOCK * inputs, inputs, group, values, packed + b * BLOCK * inputs / WEIGHTS_PER_BYTE,
                 scales + b * BLOCK * SCALES * (inputs / group));
    free(values);
  }
  return failed;
}

/* `tile` with `rows` as a number that the compiler knows, so that every loop over rows is unrolled. */
static void tile_of(int rows, Rows x, const Packed *weight, const Scale *scales, long inputs, long group,
                    const float *bias, float *y, long outputs) {
#define CASE(n) \
  case n: if (n <= TILE_ROWS) tile(n <= TILE_ROWS ? n : 1, x, weight, scales, inputs, group, bias, y, outputs); break;
  switch (rows) {
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
  }
}

/* y [rows][outputs] = x [rows][inputs] times the packed weight, plus bias [outputs] or NULL.
 * scratch: rows * (inputs + 8 * inputs / group) bytes, 4-byte aligned. */
void MULTIPLY(const float *x, long rows, const Packed *packed, const Scale *scales, long outputs, long inputs,
              long group, const float *bias, float *y, uint8_t *scratch) {
  long groups = inputs / group;
#pragma omp parallel
  {
    Rows all = quantize_rows(x, rows, inputs, group, scratch);
    long first, last, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    my_share(outputs / BLOCK, &first, &last);
    for (long b = first; b < last; b++)
      for (long t = 0; t < tiles; t++) {
        long r = rows * t / tiles, next = rows * (t + 1) / tiles;
        Rows some = {all.integers + r * inputs, all.scales + r * groups, all.sums + r * groups};
        tile_of((int)(next - r), some, packed + b * BLOCK * inputs / WEIGHTS_PER_BYTE,
                scales + b * BLOCK * SCALES * groups, inputs, group, bias ? bias + b * BLOCK : NULL,
                y + r * outputs + b * BLOCK, outputs);
      }
  }
}
