/* What products by activations in int8 share. */

#ifndef EFFICIENT_ROLLOUT_ACTIVATIONS_H
#define EFFICIENT_ROLLOUT_ACTIVATIONS_H

#include "common.h"

/* Rows of activations in int8, with a scale and the sum of the integers for each group of inputs. */
typedef struct {
  const int8_t *integers; /* [rows][inputs] */
  const float *scales;    /* [rows][groups] */
  const int32_t *sums;    /* [rows][groups] */
} Rows;

/* 8 integers, at most 127 in magnitude. */
INLINE void store_bytes(__m256i integers, void *bytes) {
  __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storel_epi64((__m128i *)bytes, _mm_packs_epi16(half, half));
}

/* 8 numbers to the nearest integers, at most 127 in magnitude. */
INLINE __m256i to_int8(__m256 numbers, int8_t *integers) {
  __m256i v = _mm256_cvtps_epi32(numbers);
  v = _mm256_min_epi32(_mm256_max_epi32(v, _mm256_set1_epi32(-127)), _mm256_set1_epi32(127));
  store_bytes(v, integers);
  return v;
}

/* Largest magnitude of `count` numbers; NaN where one is not a number. */
static float largest_magnitude(const float *x, long count) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 largest = _mm256_setzero_ps(), strange = _mm256_setzero_ps();
  for (long i = 0; i < count; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    largest = _mm256_max_ps(largest, _mm256_and_ps(v, magnitude));
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  return _mm256_movemask_ps(strange) ? __builtin_nanf("") : horizontal_max(largest);
}

/* A row of activations: a scale and the sum of the integers, per group. */
static void quantize_row(const float *x, long inputs, long group, int8_t *integers, float *scales, int32_t *sums) {
  for (long g = 0; g < inputs / group; g++, x += group, integers += group) {
    float top = largest_magnitude(x, group), inverse = top > 0.0f ? 127.0f / top : 0.0f;
    scales[g] = top / 127.0f;
    __m256i sum = _mm256_setzero_si256();
    for (long i = 0; i < group; i += 8)
      sum = _mm256_add_epi32(sum, to_int8(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)), integers + i));
    int32_t parts[8];
    _mm256_storeu_si256((__m256i *)parts, sum);
    sums[g] = parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6] + parts[7];
  }
}

/* Quantize rows into scratch of rows * (inputs + 8 * inputs / group) bytes, 4-byte aligned; every thread of a team calls
 * it, and goes on when all are done. */
static Rows quantize_rows(const float *x, long rows, long inputs, long group, uint8_t *scratch) {
  long groups = inputs / group;
  float *scales = (float *)scratch;
  int32_t *sums = (int32_t *)(scales + rows * groups);
  int8_t *integers = (int8_t *)(sums + rows * groups);
#pragma omp for schedule(static)
  for (long r = 0; r < rows; r++)
    quantize_row(x + r * inputs, inputs, group, integers + r * inputs, scales + r * groups, sums + r * groups);
  return (Rows){integers, scales, sums};
}

INLINE __m256i four_inputs(const int8_t *integers) {
  int32_t bytes;
  memcpy(&bytes, integers, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

#endif
