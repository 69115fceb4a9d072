/* Products of a few rows with int8 weights, by activations in int8. */

#include "activations.h"

/* Weights: blocks of 16 outputs; of each, 64 bytes per 4 inputs: byte 4 j + t holds input t of output j. */
enum { Q8_BLOCK = 16, Q8_AHEAD_BYTES = 1024 };

/* Rows that a tile takes at most, as for int4. */
#ifdef __AVX512VNNI__
enum { Q8_TILE_ROWS = 12 };
#else
enum { Q8_TILE_ROWS = 5 };
#endif

static void q8_quantize_output(const float *w, long inputs, float *scale_out, int8_t *values) {
  const float tiny = 1.17549435e-38f;
  float scale = largest_magnitude(w, inputs) / 127.0f;
  *scale_out = scale < tiny ? tiny : scale;
  const __m256 divisor = _mm256_set1_ps(*scale_out);
  for (long i = 0; i < inputs; i += 8) to_int8(_mm256_div_ps(_mm256_loadu_ps(w + i), divisor), values + i);
}

/* Quantize and pack weight [outputs][inputs], with one scale per output; returns 0, or 1 where memory ran out. */
int er_q8_pack(const float *weight, long outputs, long inputs, int8_t *packed, float *scales) {
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    int8_t *values = malloc((size_t)(Q8_BLOCK * inputs));
    failed = values == NULL;
    long first, last;
    my_share(outputs / Q8_BLOCK, &first, &last);
    for (long b = first; b < last && !failed; b++) {
      for (long j = 0; j < Q8_BLOCK; j++)
        q8_quantize_output(weight + (b * Q8_BLOCK + j) * inputs, inputs, scales + b * Q8_BLOCK + j, values + j * inputs);
      int8_t *out = packed + b * Q8_BLOCK * inputs;
      for (long i = 0; i < inputs; i += 4)
        for (long j = 0; j < Q8_BLOCK; j++, out += 4) memcpy(out, values + j * inputs + i, 4);
    }
    free(values);
  }
  return failed;
}

#ifdef __AVX512VNNI__

INLINE void q8_tile(const int rows, Rows x, const int8_t *weight, const float *scales, long inputs, const float *bias,
                    float *y, long outputs) {
  /* Unsigned by signed: 128 is added to every weight, and 128 times the sum of a row's integers taken off again. */
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  /* Few rows sum in two chains: one would wait for itself. */
  const int chains = rows < 5 ? 2 : 1;
  __m512i sum[Q8_TILE_ROWS][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (long i = 0; i < inputs; i += 8, weight += 128) {
    _mm_prefetch((const char *)(weight + Q8_AHEAD_BYTES), _MM_HINT_T0);
    _mm_prefetch((const char *)(weight + Q8_AHEAD_BYTES + 64), _MM_HINT_T0);
    __m512i even = _mm512_xor_si512(_mm512_loadu_si512(weight), flip);
    __m512i odd = _mm512_xor_si512(_mm512_loadu_si512(weight + 64), flip);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      int32_t fours[2];
      memcpy(fours, x.integers + r * inputs + i, sizeof fours);
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], even, _mm512_set1_epi32(fours[0]));
      sum[r][chains - 1] = _mm512_dpbusd_epi32(sum[r][chains - 1], odd, _mm512_set1_epi32(fours[1]));
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) {
    __m512i total = chains == 2 ? _mm512_add_epi32(sum[r][0], sum[r][1]) : sum[r][0];
    total = _mm512_sub_epi32(total, _mm512_set1_epi32(128 * x.sums[r]));
    __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(scales), _mm512_set1_ps(x.scales[r]));
    __m512 start = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
    _mm512_storeu_ps(y + r * outputs, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, start));
  }
}

#else

INLINE void q8_tile(const int rows, Rows x, const int8_t *weight, const float *scales, long inputs, const float *bias,
                    float *y, long outputs) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[Q8_TILE_ROWS][2];
#pragma GCC unroll 5
  for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  for (long i = 0; i < inputs; i += 4, weight += 64) {
    _mm_prefetch((const char *)(weight + Q8_AHEAD_BYTES), _MM_HINT_T0);
    __m256i low = _mm256_loadu_si256((const __m256i *)weight), high = _mm256_loadu_si256((const __m256i *)(weight + 32));
#pragma GCC unroll 5
    for (int r = 0; r < rows; r++) {
      /* Unsigned by signed: the sign moves to the weight. Two products of at most 127 * 127 fit 16 bits. */
      __m256i value = four_inputs(x.integers + r * inputs + i), size = _mm256_abs_epi8(value);
      __m256i of_low = _mm256_maddubs_epi16(size, _mm256_sign_epi8(low, value));
      __m256i of_high = _mm256_maddubs_epi16(size, _mm256_sign_epi8(high, value));
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(of_low, ones));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(of_high, ones));
    }
  }
#pragma GCC unroll 5
  for (int r = 0; r < rows; r++)
    for (int half = 0; half < 2; half++) {
      __m256 scale = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * half), _mm256_set1_ps(x.scales[r]));
      __m256 start = bias ? _mm256_loadu_ps(bias + 8 * half) : _mm256_setzero_ps();
      _mm256_storeu_ps(y + r * outputs + 8 * half, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][half]), scale, start));
    }
}

#endif

static void q8_rows(int rows, Rows x, const int8_t *weight, const float *scales, long inputs, const float *bias,
                    float *y, long outputs) {
#define TILE(n) q8_tile(n, x, weight, scales, inputs, bias, y, outputs)
  BY_ROWS(rows, Q8_TILE_ROWS)
#undef TILE
}

/* y [rows][outputs] = x [rows][inputs] times the packed weight, plus bias [outputs] or NULL.
 * scratch: rows * (inputs + 8) bytes, 4-byte aligned. */
void er_q8_multiply(const float *x, long rows, const int8_t *packed, const float *scales, long outputs, long inputs,
                    const float *bias, float *y, uint8_t *scratch) {
#pragma omp parallel
  {
    Rows all = quantize_rows(x, rows, inputs, inputs, scratch);
    long first, last, tiles = (rows + Q8_TILE_ROWS - 1) / Q8_TILE_ROWS;
    my_share(outputs / Q8_BLOCK, &first, &last);
    for (long b = first; b < last; b++)
      for (long t = 0; t < tiles; t++) {
        long r = rows * t / tiles, next = rows * (t + 1) / tiles;
        Rows of_tile = {all.integers + r * inputs, all.scales + r, all.sums + r};
        q8_rows((int)(next - r), of_tile, packed + b * Q8_BLOCK * inputs, scales + b * Q8_BLOCK, inputs,
                bias ? bias + b * Q8_BLOCK : NULL, y + r * outputs + b * Q8_BLOCK, outputs);
      }
  }
}
