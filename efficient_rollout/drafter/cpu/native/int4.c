/* Products of a few rows with int4 weights, by activations in int8. */

#include "activations.h"

/* Weights: blocks of 8 outputs; of each, 32 bytes per 8 inputs: byte 4 j + t holds input t of output j in its low half
 * and input 4 + t in its high one. Scales: per block and group 8 scales and 8 offsets, bfloat16.
 * weight = (value - 8) * scale + offset, the convention of torch's int4 kernels. */
enum { BLOCK = 8, WEIGHTS_PER_BYTE = 2, SCALES = 2, SUB = 32, AHEAD_BYTES = 768 };
typedef uint8_t Packed;
typedef uint16_t Scale;

/* Rows that a tile takes at most: their sums stay in registers. VNNI sums four products of bytes in one instruction. */
#ifdef __AVX512VNNI__
enum { TILE_ROWS = 8 };
#else
enum { TILE_ROWS = 4 };
#endif

static float bf16_to_f32(uint16_t value) {
  uint32_t bits = (uint32_t)value << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

static uint16_t f32_to_bf16(float value) { /* to nearest, ties to even */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

INLINE float horizontal_min(__m256 v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}

static void quantize_group(const float *w, long group, uint16_t *scale_out, uint16_t *offset_out, int8_t *values) {
  __m256 low = _mm256_loadu_ps(w), high = low, strange = _mm256_cmp_ps(low, low, _CMP_UNORD_Q);
  for (long i = 8; i < group; i += 8) {
    __m256 v = _mm256_loadu_ps(w + i);
    low = _mm256_min_ps(low, v);
    high = _mm256_max_ps(high, v);
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  const float tiny = 1.17549435e-38f;
  float smallest = horizontal_min(low), step = (horizontal_max(high) - smallest) / 15.0f;
  if (_mm256_movemask_ps(strange)) step = smallest = __builtin_nanf("");
  *scale_out = f32_to_bf16(step < tiny ? tiny : step);
  float scale = bf16_to_f32(*scale_out);
  *offset_out = f32_to_bf16(smallest + 8.0f * scale);
  __m256 offset = _mm256_set1_ps(bf16_to_f32(*offset_out)), divisor = _mm256_set1_ps(scale);
  for (long i = 0; i < group; i += 8) {
    __m256 steps = _mm256_div_ps(_mm256_sub_ps(_mm256_loadu_ps(w + i), offset), divisor);
    steps = _mm256_round_ps(steps, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    steps = _mm256_add_ps(steps, _mm256_set1_ps(8.0f));
    steps = _mm256_min_ps(_mm256_max_ps(steps, _mm256_setzero_ps()), _mm256_set1_ps(15.0f));
    store_bytes(_mm256_cvtps_epi32(steps), values + i);
  }
}

static void pack_block(const float *weight, long inputs, long group, int8_t *values, uint8_t *out, uint16_t *scales) {
  for (long j = 0; j < BLOCK; j++)
    for (long g = 0; g < inputs / group; g++) {
      uint16_t *of_group = scales + g * 2 * BLOCK + j;
      long at = j * inputs + g * group;
      quantize_group(weight + at, group, of_group, of_group + BLOCK, values + at);
    }
  for (long i = 0; i < inputs; i += 8)
    for (long j = 0; j < BLOCK; j++, out += 4) {
      uint32_t halves[2];
      memcpy(halves, values + j * inputs + i, sizeof halves);
      halves[0] |= halves[1] << 4;
      memcpy(out, halves, 4);
    }
}

INLINE void tile(const int rows, Rows x, const uint8_t *weight, const uint16_t *scales, long inputs, long group,
                 const float *bias, float *y, long outputs) {
  const __m256i low_half = _mm256_set1_epi8(15);
  const long groups = inputs / group;
  __m256 sum[TILE_ROWS];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) sum[r] = bias ? _mm256_loadu_ps(bias) : _mm256_setzero_ps();
  for (long g = 0; g < groups; g++, scales += 2 * BLOCK) {
    __m256i dot[TILE_ROWS];
#ifdef __AVX512VNNI__
    /* Four chains of sums for a row or two, two for more: a single one would wait for itself. */
    const int chains = rows < 3 ? 4 : 2;
    __m256i part[TILE_ROWS][4];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < chains; c++) part[r][c] = _mm256_setzero_si256();
    for (long i = g * group; i < (g + 1) * group; i += 16, weight += 64) {
      _mm_prefetch((const char *)(weight + AHEAD_BYTES), _MM_HINT_T0);
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(weight + 32 * half));
        __m256i low = _mm256_and_si256(both, low_half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
          const int8_t *row = x.integers + r * inputs + i + 8 * half;
          __m256i *sums = part[r] + (chains == 4 ? 2 * half : 0);
          sums[0] = _mm256_dpbusd_epi32(sums[0], low, four_inputs(row));
          sums[1] = _mm256_dpbusd_epi32(sums[1], high, four_inputs(row + 4));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      dot[r] = _mm256_add_epi32(part[r][0], part[r][1]);
      if (chains == 4) dot[r] = _mm256_add_epi32(dot[r], _mm256_add_epi32(part[r][2], part[r][3]));
    }
#else
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) dot[r] = _mm256_setzero_si256();
    for (long s = g * group; s < (g + 1) * group; s += SUB) {
      /* 8 products of at most 2 * 15 * 127 fit 16 bits. */
      __m256i part[TILE_ROWS];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) part[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (long i = s; i < s + SUB; i += 8, weight += 32) {
        _mm_prefetch((const char *)(weight + AHEAD_BYTES), _MM_HINT_T0);
        __m256i both = _mm256_loadu_si256((const __m256i *)weight);
        __m256i low = _mm256_and_si256(both, low_half), high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low_half);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
          const int8_t *row = x.integers + r * inputs + i;
          part[r] = _mm256_add_epi16(part[r], _mm256_maddubs_epi16(low, four_inputs(row)));
          part[r] = _mm256_add_epi16(part[r], _mm256_maddubs_epi16(high, four_inputs(row + 4)));
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(part[r], _mm256_set1_epi16(1)));
    }
#endif
    __m128i raw_scale = _mm_loadu_si128((const __m128i *)scales);
    __m128i raw_offset = _mm_loadu_si128((const __m128i *)(scales + BLOCK));
    __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw_scale), 16));
    __m256 offset = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw_offset), 16));
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
      int32_t total = x.sums[r * groups + g];
      __m256 centred = _mm256_cvtepi32_ps(_mm256_sub_epi32(dot[r], _mm256_set1_epi32(8 * total)));
      __m256 value = _mm256_fmadd_ps(offset, _mm256_set1_ps((float)total), _mm256_mul_ps(scale, centred));
      sum[r] = _mm256_fmadd_ps(value, _mm256_set1_ps(x.scales[r * groups + g]), sum[r]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) _mm256_storeu_ps(y + r * outputs, sum[r]);
}

#define PACK er_q4_pack
#define MULTIPLY er_q4_multiply
#include "blocks.h"
