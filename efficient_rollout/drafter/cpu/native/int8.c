/* Products of a few rows with int8 weights, by activations in int8. */

#include "activations.h"

/* Weights: blocks of 16 outputs; of each, 64 bytes per 4 inputs: byte 4 j + t holds input t of output j. */
enum { BLOCK = 16, WEIGHTS_PER_BYTE = 1, SCALES = 1, AHEAD_BYTES = 1024 };
typedef int8_t Packed;
typedef float Scale;

/* Rows that a tile takes at most, as for int4. */
#ifdef __AVX512VNNI__
enum { TILE_ROWS = 12 };
#else
enum { TILE_ROWS = 5 };
#endif

static void quantize_output(const float *w, long inputs, float *scale_out, int8_t *values) {
  const float tiny = 1.17549435e-38f;
  float scale = largest_magnitude(w, inputs) / 127.0f;
  *scale_out = scale < tiny ? tiny : scale;
  const __m256 divisor = _mm256_set1_ps(*scale_out);
  for (long i = 0; i < inputs; i += 8) to_int8(_mm256_div_ps(_mm256_loadu_ps(w + i), divisor), values + i);
}

/* One scale for all inputs of an output, whatever the group. */
static void pack_block(const float *weight, long inputs, long group, int8_t *values, int8_t *out, float *scales) {
  for (long j = 0; j < BLOCK; j++) quantize_output(weight + j * inputs, inputs, scales + j, values + j * inputs);
  for (long i = 0; i < inputs; i += 4)
    for (long j = 0; j < BLOCK; j++, out += 4) memcpy(out, values + j * inputs + i, 4);
}

#ifdef __AVX512VNNI__

INLINE void tile(const int rows, Rows x, const int8_t *weight, const float *scales, long inputs, long group,
                 const float *bias, float *y, long outputs) {
  /* Unsigned by signed: 128 is added to every weight, and 128 times the sum of a row's integers taken off again. */
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  /* Few rows sum in two chains: one would wait for itself. */
  const int chains = rows < 5 ? 2 : 1;
  __m512i sum[TILE_ROWS][2];
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm512_setzero_si512();
  for (long i = 0; i < inputs; i += 8, weight += 128) {
    _mm_prefetch((const char *)(weight + AHEAD_BYTES), _MM_HINT_T0);
    _mm_prefetch((const char *)(weight + AHEAD_BYTES + 64), _MM_HINT_T0);
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

INLINE void tile(const int rows, Rows x, const int8_t *weight, const float *scales, long inputs, long group,
                 const float *bias, float *y, long outputs) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[TILE_ROWS][2];
#pragma GCC unroll 5
  for (int r = 0; r < rows; r++) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  for (long i = 0; i < inputs; i += 4, weight += 64) {
    _mm_prefetch((const char *)(weight + AHEAD_BYTES), _MM_HINT_T0);
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

#define PACK er_q8_pack
#define MULTIPLY er_q8_multiply
#include "blocks.h"
