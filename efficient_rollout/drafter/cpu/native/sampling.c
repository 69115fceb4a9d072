/* A draw from each row of logits: the largest logit minus the logarithm of exponential noise (the Gumbel-max trick).
 *
 * The noise is computed where it is used, from a key and a position of each row and the token's number, so that none is
 * stored, and whoever draws for the same key and position has the same.
 */

#include <math.h>

#include "common.h"

enum { CHUNK = 8192, FEW = 1 << 14 };

/* The high and low halves of eight products of 32 bits by a constant. */
INLINE void multiply_wide(__m256i value, __m256i factor, __m256i *high, __m256i *low) {
  __m256i even = _mm256_mul_epu32(value, factor);
  __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(value, 32), factor);
  *high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
}

/* Philox4x32-10 for eight counters (number, 0, position): four words of each in `x`. */
INLINE void philox(__m256i number, uint64_t position, uint64_t key, __m256i x[4]) {
  const __m256i factor0 = _mm256_set1_epi32((int)0xD2511F53u), factor1 = _mm256_set1_epi32((int)0xCD9E8D57u);
  uint32_t key0 = (uint32_t)key, key1 = (uint32_t)(key >> 32);
  x[0] = number;
  x[1] = _mm256_setzero_si256();
  x[2] = _mm256_set1_epi32((int)(uint32_t)position);
  x[3] = _mm256_set1_epi32((int)(uint32_t)(position >> 32));
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    __m256i high0, low0, high1, low1;
    multiply_wide(x[0], factor0, &high0, &low0);
    multiply_wide(x[2], factor1, &high1, &low1);
    x[0] = _mm256_xor_si256(_mm256_xor_si256(high1, x[1]), _mm256_set1_epi32((int)key0));
    x[1] = low1;
    x[2] = _mm256_xor_si256(_mm256_xor_si256(high0, x[3]), _mm256_set1_epi32((int)key1));
    x[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

/* Natural logarithm of normal positive numbers (Cephes' logf: below 1e-7 relative, near 1 absolute). */
INLINE __m256 logarithm(__m256 value) {
  const __m256i root_half = _mm256_set1_epi32(0x3f3504f3);
  __m256i bits = _mm256_castps_si256(value);
  __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(bits, root_half), 23);
  __m256 f = _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
  f = _mm256_sub_ps(f, _mm256_set1_ps(1.0f));
  __m256 e = _mm256_cvtepi32_ps(exponent), square = _mm256_mul_ps(f, f);
  static const float coefficients[] = {-1.1514610310e-1f, 1.1676998740e-1f,  -1.2420140846e-1f, 1.4249322787e-1f,
                                       -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
  __m256 y = _mm256_set1_ps(7.0376836292e-2f);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(coefficients[i]));
  y = _mm256_mul_ps(_mm256_mul_ps(y, f), square);
  y = _mm256_fmadd_ps(e, _mm256_set1_ps(-2.12194440e-4f), y);
  y = _mm256_fmadd_ps(square, _mm256_set1_ps(-0.5f), y);
  return _mm256_fmadd_ps(e, _mm256_set1_ps(0.693359375f), _mm256_add_ps(f, y));
}

/* log(e) for exponential e, from 31 random bits. Where e is small, and a token wins, the bits are all significant:
 * e = -log1p(-w) with w next to 0, computed as Kahan does, through the rounding error of 1 - w. */
INLINE __m256 log_of_exponential(__m256i word) {
  const __m256 one = _mm256_set1_ps(1.0f);
  __m256 w = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32(word, 1)), _mm256_set1_ps(0x1p-31f),
                             _mm256_set1_ps(0x1p-32f));
  w = _mm256_min_ps(w, _mm256_set1_ps(0x1.fffffep-1f)); /* log(0) would lose to a token that is not allowed */
  __m256 rest = _mm256_sub_ps(one, w);
  __m256 e = _mm256_mul_ps(logarithm(rest), _mm256_div_ps(w, _mm256_sub_ps(rest, one)));
  e = _mm256_blendv_ps(e, w, _mm256_cmp_ps(rest, one, _CMP_EQ_OQ));
  return logarithm(e);
}

typedef struct {
  double score;
  int64_t token;
} Best;

INLINE void take_larger(Best *best, float score, int64_t token) {
  if (score > best->score || (score == best->score && token < best->token)) *best = (Best){score, token};
}

static Best draw_chunk(const float *logits, long first, long last, uint64_t key, uint64_t position) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 best = _mm256_set1_ps(-INFINITY);
  __m256i best_token = _mm256_set1_epi32(INT32_MAX);
  for (long start = first; start < last; start += 32) {
    __m256i x[4];
    philox(_mm256_add_epi32(_mm256_set1_epi32((int)(start / 4)), lanes), position, key, x);
    for (int j = 0; j < 4; j++) {
      long at = start + 8 * j, left = last - at;
      if (left <= 0) break;
      __m256 logit;
      if (left >= 8) {
        logit = _mm256_loadu_ps(logits + at);
      } else {
        float few[8];
        for (int i = 0; i < 8; i++) few[i] = i < left ? logits[at + i] : -INFINITY;
        logit = _mm256_loadu_ps(few);
      }
      __m256 score = _mm256_sub_ps(logit, log_of_exponential(x[j]));
      __m256 larger = _mm256_cmp_ps(score, best, _CMP_GT_OQ);
      best = _mm256_blendv_ps(best, score, larger);
      __m256i token = _mm256_add_epi32(_mm256_set1_epi32((int)at), lanes);
      best_token = _mm256_blendv_epi8(best_token, token, _mm256_castps_si256(larger));
    }
  }
  float scores[8];
  int32_t tokens[8];
  _mm256_storeu_ps(scores, best);
  _mm256_storeu_si256((__m256i *)tokens, best_token);
  Best found = {-INFINITY, INT32_MAX};
  for (int i = 0; i < 8; i++) take_larger(&found, scores[i], tokens[i]);
  return found;
}

/* logits [rows][vocab], keys [rows][2] (key, position), scratch [rows][vocab / CHUNK, up] -> tokens [rows] */
void er_gumbel_draw(const float *logits, long rows, long vocab, const uint64_t *keys, Best *scratch, int64_t *tokens) {
  long chunks = (vocab + CHUNK - 1) / CHUNK;
#pragma omp parallel for schedule(static) if (rows * vocab > FEW)
  for (long piece = 0; piece < rows * chunks; piece++) {
    long row = piece / chunks, first = piece % chunks * CHUNK, last = first + CHUNK < vocab ? first + CHUNK : vocab;
    scratch[piece] = draw_chunk(logits + row * vocab, first, last, keys[2 * row], keys[2 * row + 1]);
  }
  for (long row = 0; row < rows; row++) {
    Best found = scratch[row * chunks];
    for (long c = 1; c < chunks; c++) take_larger(&found, scratch[row * chunks + c].score, scratch[row * chunks + c].token);
    tokens[row] = found.token < vocab ? found.token : 0;
  }
}
