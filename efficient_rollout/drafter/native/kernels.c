/* Decoding a few positions of a few sequences on CPUs with AVX2 and FMA: int4 weights by int8 activations, float32
 * weights, and float32 attention over a paged cache.
 *
 * Every output is summed in one order, whatever the number of rows: a row's result does not depend on its neighbours,
 * bit for bit. Pointers are to contiguous memory; row-major; sizes are checked by the caller. Threads are OpenMP's, the
 * pool that torch itself uses.
 */

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

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

INLINE float horizontal_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

INLINE float horizontal_min(__m256 v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}

/* The half-open share [*first, *last) of `count` pieces that belongs to the calling thread. */
INLINE void my_share(long count, long *first, long *last) {
  long threads = omp_get_num_threads(), thread = omp_get_thread_num();
  *first = count * thread / threads;
  *last = count * (thread + 1) / threads;
}

/* ---- float32 ------------------------------------------------------------------------------------------------- */

enum { F32_PANEL = 16, F32_TILE_ROWS = 6, F32_BLOCK_ROWS = 48, F32_AHEAD = 24 };

/* weight [outputs][inputs] -> panels [outputs / 16][inputs][16] */
void er_f32_pack(const float *weight, long outputs, long inputs, float *panels) {
#pragma omp parallel for schedule(static)
  for (long p = 0; p < outputs / F32_PANEL; p++) {
    const float *rows = weight + p * F32_PANEL * inputs;
    float *panel = panels + p * F32_PANEL * inputs;
    for (long start = 0; start < inputs; start += 16) {
      long end = start + 16 < inputs ? start + 16 : inputs;
      for (long j = 0; j < F32_PANEL; j++)
        for (long i = start; i < end; i++) panel[i * F32_PANEL + j] = rows[j * inputs + i];
    }
  }
}

/* Columns of `right` that a tile reads while it computes, so that memory does not wait for arithmetic. */
typedef struct {
  const float *from; /* NULL: nothing */
  long per;          /* one line each so many steps */
} Ahead;

/* sums [rows][16] (+)= left [rows][depth] times right [depth][16]; rows of `right` lie `right_stride` floats apart. */
INLINE void f32_tile(const int rows, const float *left, long left_stride, const float *right, long right_stride,
                     long depth, const float *start, long start_stride, float *sums, long sums_stride, Ahead ahead) {
  __m256 sum[F32_TILE_ROWS][2];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    sum[r][0] = start ? _mm256_loadu_ps(start + r * start_stride) : _mm256_setzero_ps();
    sum[r][1] = start ? _mm256_loadu_ps(start + r * start_stride + 8) : _mm256_setzero_ps();
  }
  long until_next = ahead.per;
  for (long i = 0; i < depth; i++) {
    if (ahead.from && --until_next == 0) {
      _mm_prefetch((const char *)ahead.from, _MM_HINT_T1);
      ahead.from += 16;
      until_next = ahead.per;
    }
    /* One row alone keeps pace with memory; more rows compute between loads, and then the next lines come late. Where
       rows lie apart, what comes next is the line beside this one. */
    if (rows > 1)
      _mm_prefetch((const char *)(right + i * right_stride + (right_stride == 16 ? F32_AHEAD * 16 : 16)), _MM_HINT_T0);
    __m256 low = _mm256_loadu_ps(right + i * right_stride), high = _mm256_loadu_ps(right + i * right_stride + 8);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
      __m256 value = _mm256_broadcast_ss(left + r * left_stride + i);
      sum[r][0] = _mm256_fmadd_ps(value, low, sum[r][0]);
      sum[r][1] = _mm256_fmadd_ps(value, high, sum[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    _mm256_storeu_ps(sums + r * sums_stride, sum[r][0]);
    _mm256_storeu_ps(sums + r * sums_stride + 8, sum[r][1]);
  }
}

static void f32_rows(int rows, const float *left, long left_stride, const float *right, long right_stride, long depth,
                     const float *start, long start_stride, float *sums, long sums_stride, Ahead ahead) {
#define TILE(n) f32_tile(n, left, left_stride, right, right_stride, depth, start, start_stride, sums, sums_stride, ahead)
  switch (rows) { /* each with its own, fully unrolled loop */
    case 1: TILE(1); break;
    case 2: TILE(2); break;
    case 3: TILE(3); break;
    case 4: TILE(4); break;
    case 5: TILE(5); break;
    default: TILE(6); break;
  }
#undef TILE
}

/* As many rows as there are, in tiles of nearly the same size. */
static void f32_all_rows(long rows, const float *left, long left_stride, const float *right, long right_stride,
                         long depth, const float *start, long start_stride, float *sums, long sums_stride,
                         const float *next) {
  long tiles = (rows + F32_TILE_ROWS - 1) / F32_TILE_ROWS;
  for (long t = 0; t < tiles; t++) {
    long r = rows * t / tiles, end = rows * (t + 1) / tiles;
    /* The first tile waits for `right` itself; the others find it cached, and fetch what comes next. */
    Ahead ahead = {t > 0 && next ? next + (t - 1) * depth / (tiles - 1) * 16 : NULL, tiles - 1};
    f32_rows((int)(end - r), left + r * left_stride, left_stride, right, right_stride, depth,
             start ? start + r * start_stride : NULL, start_stride, sums + r * sums_stride, sums_stride, ahead);
  }
}

/* y [rows][outputs] = x [rows][inputs] times the packed weight, plus bias [outputs] or NULL */
void er_f32_multiply(const float *x, long rows, const float *panels, long outputs, long inputs, const float *bias,
                     float *y) {
#pragma omp parallel
  {
    long first, last;
    my_share(outputs / F32_PANEL, &first, &last);
    /* Rows in blocks that stay cached, while each panel is read once per block. */
    for (long block = 0; block < rows; block += F32_BLOCK_ROWS) {
      long in_block = rows - block < F32_BLOCK_ROWS ? rows - block : F32_BLOCK_ROWS;
      for (long p = first; p < last; p++) {
        const float *panel = panels + p * F32_PANEL * inputs;
        f32_all_rows(in_block, x + block * inputs, inputs, panel, F32_PANEL, inputs, bias ? bias + p * F32_PANEL : NULL,
                     0, y + block * outputs + p * F32_PANEL, outputs, p + 1 < last ? panel + F32_PANEL * inputs : NULL);
      }
    }
  }
}

/* ---- attention over a paged cache ---------------------------------------------------------------------------------
 *
 * vLLM's CPU cache: blocks [kv_heads][2][block_size * head_dim], keys transposed, [head_dim][block_size], then values
 * [block_size][head_dim]. Softmax runs over one block after the other (Milakov and Gimelshein, arXiv 1805.02867), so that
 * what a position attends to is summed in one order, whether it is decoded alone or verified beside others.
 */

enum { ATTENTION_ROWS = 48 };

/* exp of numbers up to 0: Cephes' polynomial, within 2 units in the last place; 0 below -87. */
INLINE __m256 exponential(__m256 x) {
  __m256 is_tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
  __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_fmadd_ps(_mm256_mul_ps(r, r), y, _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
  __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(is_tiny, _mm256_mul_ps(y, _mm256_castsi256_ps(power)));
}

INLINE float horizontal_sum(__m256 v) {
  __m128 m = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_add_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_add_ss(m, _mm_shuffle_ps(m, m, 1)));
}

/* One row's scores of a block into weights; beyond `visible` they are 0. Returns what to multiply older sums by. */
static float softmax_block(float *scores, long block_size, long visible, float *largest, float *total) {
  if (visible <= 0) {
    memset(scores, 0, (size_t)block_size * sizeof *scores);
    return 1.0f;
  }
  for (long i = visible; i < block_size; i++) scores[i] = -__builtin_inff();
  __m256 top = _mm256_loadu_ps(scores);
  for (long i = 8; i < block_size; i += 8) top = _mm256_max_ps(top, _mm256_loadu_ps(scores + i));
  float now = horizontal_max(top), before = *largest;
  if (now < before) now = before;
  __m256 sum = _mm256_setzero_ps();
  for (long i = 0; i < block_size; i += 8) {
    __m256 weight = exponential(_mm256_sub_ps(_mm256_loadu_ps(scores + i), _mm256_set1_ps(now)));
    _mm256_storeu_ps(scores + i, weight);
    sum = _mm256_add_ps(sum, weight);
  }
  float keep = _mm256_cvtss_f32(exponential(_mm256_set1_ps(before - now)));
  *largest = now;
  *total = *total * keep + horizontal_sum(sum);
  return keep;
}

typedef struct {
  const float *query; /* [tokens][heads][head_dim], tokens query_stride floats apart */
  float *output;      /* [tokens][heads][head_dim], tokens output_stride floats apart */
  const float *cache;
  const int32_t *query_starts; /* [requests + 1] */
  const int32_t *lengths;      /* [requests], tokens attended to by a request's last query */
  const int32_t *blocks;       /* [requests][blocks_stride] */
  long query_stride, output_stride, blocks_stride, requests, heads, kv_heads, head_dim, block_size;
  float scale;
} Attention;

/* Queries [first, last) of one request against one head of keys and values. scratch: er_f32_attend allocates it. */
static void attend(const Attention *a, long request, long kv_head, long first, long last, float *scratch) {
  long group = a->heads / a->kv_heads, rows = (last - first) * group, dim = a->head_dim, size = a->block_size;
  float *queries = scratch, *scores = queries + rows * dim, *sums = scores + rows * size;
  float *largest = sums + rows * dim, *total = largest + rows;
  long token = a->query_starts[request] + first;
  /* Position of the first of these queries. */
  long position = a->lengths[request] - (a->query_starts[request + 1] - a->query_starts[request]) + first;
  for (long r = 0; r < rows; r++) {
    const float *from = a->query + (token + r / group) * a->query_stride + (kv_head * group + r % group) * dim;
    for (long d = 0; d < dim; d++) queries[r * dim + d] = from[d] * a->scale;
    largest[r] = -__builtin_inff();
    total[r] = 0.0f;
  }
  memset(sums, 0, (size_t)(rows * dim) * sizeof *sums);
  long context = position + (last - first);
  for (long start = 0; start < context; start += size) {
    long in_block = context - start < size ? context - start : size;
    const float *keys =
        a->cache + ((long)a->blocks[request * a->blocks_stride + start / size] * a->kv_heads + kv_head) * 2 * size * dim;
    const float *values = keys + size * dim;
    for (long t = 0; t < in_block; t += 16)
      f32_all_rows(rows, queries, dim, keys + t, size, dim, NULL, 0, scores + t, size, NULL);
    for (long r = 0; r < rows; r++) {
      long visible = position + r / group + 1 - start;
      float keep = softmax_block(scores + r * size, size, visible < in_block ? visible : in_block, largest + r, total + r);
      if (keep != 1.0f)
        for (long d = 0; d < dim; d++) sums[r * dim + d] *= keep;
    }
    for (long d = 0; d < dim; d += 16)
      f32_all_rows(rows, scores, size, values + d, dim, in_block, sums + d, dim, sums + d, dim, NULL);
  }
  for (long r = 0; r < rows; r++) {
    float *to = a->output + (token + r / group) * a->output_stride + (kv_head * group + r % group) * dim;
    for (long d = 0; d < dim; d++) to[d] = sums[r * dim + d] / total[r];
  }
}

/* Causal attention of every query; returns 0, or 1 where memory ran out. */
int er_f32_attend(const Attention *a) {
  long group = a->heads / a->kv_heads, queries = ATTENTION_ROWS / group > 0 ? ATTENTION_ROWS / group : 1;
  size_t floats = (size_t)(queries * group) * (size_t)(2 * a->head_dim + a->block_size + 2);
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    float *scratch = malloc(floats * sizeof *scratch);
    failed = scratch == NULL;
#pragma omp for schedule(dynamic) collapse(2)
    for (long request = 0; request < a->requests; request++)
      for (long kv_head = 0; kv_head < a->kv_heads; kv_head++) {
        long count = a->query_starts[request + 1] - a->query_starts[request];
        for (long first = 0; first < count && !failed; first += queries)
          attend(a, request, kv_head, first, first + queries < count ? first + queries : count, scratch);
      }
    free(scratch);
  }
  return failed;
}

/* ---- int4 weights, int8 activations ------------------------------------------------------------------------------ */

/* Weights: blocks of 8 outputs; of each, 32 bytes per 8 inputs: byte 4 j + t holds input t of output j in its low half
 * and input 4 + t in its high one. Scales: per block and group 8 scales and 8 offsets, bfloat16.
 * weight = (value - 8) * scale + offset, the convention of torch's int4 kernels. */
enum { Q4_BLOCK = 8, Q4_TILE_ROWS = 4, Q4_SUB = 32, Q4_AHEAD_BYTES = 768 };

static void q4_quantize_group(const float *w, long group, uint16_t *scale_out, uint16_t *offset_out, uint8_t *values) {
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
    int32_t integers[8];
    _mm256_storeu_si256((__m256i *)integers, _mm256_cvtps_epi32(steps));
    for (int j = 0; j < 8; j++) values[i + j] = (uint8_t)integers[j];
  }
}

/* Quantize and pack weight [outputs][inputs]; returns 0, or 1 where memory ran out. */
int er_q4_pack(const float *weight, long outputs, long inputs, long group, uint8_t *packed, uint16_t *scales) {
  long groups = inputs / group;
  int failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    uint8_t *values = malloc((size_t)(Q4_BLOCK * inputs));
    failed = values == NULL;
    long first, last;
    my_share(outputs / Q4_BLOCK, &first, &last);
    for (long b = first; b < last && !failed; b++) {
      for (long j = 0; j < Q4_BLOCK; j++)
        for (long g = 0; g < groups; g++) {
          uint16_t *of_group = scales + (b * groups + g) * 2 * Q4_BLOCK;
          q4_quantize_group(weight + (b * Q4_BLOCK + j) * inputs + g * group, group, of_group + j,
                            of_group + Q4_BLOCK + j, values + j * inputs + g * group);
        }
      uint8_t *out = packed + b * Q4_BLOCK * inputs / 2;
      for (long i = 0; i < inputs; i += 8)
        for (long j = 0; j < Q4_BLOCK; j++)
          for (long t = 0; t < 4; t++)
            *out++ = (uint8_t)(values[j * inputs + i + t] | values[j * inputs + i + 4 + t] << 4);
    }
    free(values);
  }
  return failed;
}

/* A row of activations to int8: a scale, and the scaled sum of the integers, per group. */
static void q4_quantize_row(const float *x, long inputs, long group, int8_t *integers, float *scales, int32_t *sums) {
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (long g = 0; g < inputs / group; g++, x += group, integers += group) {
    __m256 largest = _mm256_setzero_ps(), strange = _mm256_setzero_ps();
    for (long i = 0; i < group; i += 8) {
      __m256 v = _mm256_loadu_ps(x + i);
      largest = _mm256_max_ps(largest, _mm256_and_ps(v, magnitude));
      strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    float top = horizontal_max(largest), inverse = top > 0.0f ? 127.0f / top : 0.0f;
    scales[g] = _mm256_movemask_ps(strange) ? __builtin_nanf("") : top / 127.0f;
    __m256i sum = _mm256_setzero_si256();
    for (long i = 0; i < group; i += 8) {
      __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(inverse)));
      v = _mm256_min_epi32(_mm256_max_epi32(v, _mm256_set1_epi32(-127)), _mm256_set1_epi32(127));
      sum = _mm256_add_epi32(sum, v);
      __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
      _mm_storel_epi64((__m128i *)(integers + i), _mm_packs_epi16(half, half));
    }
    int32_t parts[8];
    _mm256_storeu_si256((__m256i *)parts, sum);
    sums[g] = parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6] + parts[7];
  }
}

typedef struct {
  const int8_t *integers; /* [rows][inputs] */
  const float *scales;    /* [rows][groups] */
  const int32_t *sums;    /* [rows][groups] */
} Q4Rows;

INLINE __m256i four_inputs(const int8_t *integers) {
  int32_t bytes;
  memcpy(&bytes, integers, sizeof bytes);
  return _mm256_set1_epi32(bytes);
}

INLINE void q4_tile(const int rows, Q4Rows x, const uint8_t *weight, const uint16_t *scales, long inputs, long group,
                    const float *bias, float *y, long outputs) {
  const __m256i low_half = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  const long groups = inputs / group;
  __m256 sum[Q4_TILE_ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) sum[r] = bias ? _mm256_loadu_ps(bias) : _mm256_setzero_ps();
  for (long g = 0; g < groups; g++, scales += 2 * Q4_BLOCK) {
    __m256i dot[Q4_TILE_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) dot[r] = _mm256_setzero_si256();
    for (long s = g * group; s < (g + 1) * group; s += Q4_SUB) {
      /* 8 products of at most 2 * 15 * 127 fit 16 bits. */
      __m256i part[Q4_TILE_ROWS];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) part[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (long i = s; i < s + Q4_SUB; i += 8, weight += 32) {
        _mm_prefetch((const char *)(weight + Q4_AHEAD_BYTES), _MM_HINT_T0);
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
      for (int r = 0; r < rows; r++) dot[r] = _mm256_add_epi32(dot[r], _mm256_madd_epi16(part[r], ones));
    }
    __m128i raw_scale = _mm_loadu_si128((const __m128i *)scales);
    __m128i raw_offset = _mm_loadu_si128((const __m128i *)(scales + Q4_BLOCK));
    __m256 scale = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw_scale), 16));
    __m256 offset = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw_offset), 16));
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      int32_t total = x.sums[r * groups + g];
      __m256 centred = _mm256_cvtepi32_ps(_mm256_sub_epi32(dot[r], _mm256_set1_epi32(8 * total)));
      __m256 value = _mm256_fmadd_ps(offset, _mm256_set1_ps((float)total), _mm256_mul_ps(scale, centred));
      sum[r] = _mm256_fmadd_ps(value, _mm256_set1_ps(x.scales[r * groups + g]), sum[r]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++) _mm256_storeu_ps(y + r * outputs, sum[r]);
}

static void q4_rows(int rows, Q4Rows x, const uint8_t *weight, const uint16_t *scales, long inputs, long group,
                    const float *bias, float *y, long outputs) {
  switch (rows) {
    case 1: q4_tile(1, x, weight, scales, inputs, group, bias, y, outputs); break;
    case 2: q4_tile(2, x, weight, scales, inputs, group, bias, y, outputs); break;
    case 3: q4_tile(3, x, weight, scales, inputs, group, bias, y, outputs); break;
    default: q4_tile(4, x, weight, scales, inputs, group, bias, y, outputs); break;
  }
}

/* y [rows][outputs] = x [rows][inputs] times the packed weight, plus bias [outputs] or NULL.
 * scratch: rows * (inputs + 8 * inputs / group) bytes, 4-byte aligned. */
void er_q4_multiply(const float *x, long rows, const uint8_t *packed, const uint16_t *scales, long outputs, long inputs,
                    long group, const float *bias, float *y, uint8_t *scratch) {
  long groups = inputs / group;
  float *row_scales = (float *)scratch;
  int32_t *row_sums = (int32_t *)(row_scales + rows * groups);
  int8_t *integers = (int8_t *)(row_sums + rows * groups);
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (long r = 0; r < rows; r++)
      q4_quantize_row(x + r * inputs, inputs, group, integers + r * inputs, row_scales + r * groups,
                      row_sums + r * groups);
    long first, last, tiles = (rows + Q4_TILE_ROWS - 1) / Q4_TILE_ROWS;
    my_share(outputs / Q4_BLOCK, &first, &last);
    for (long b = first; b < last; b++)
      for (long t = 0; t < tiles; t++) {
        long r = rows * t / tiles, next = rows * (t + 1) / tiles;
        Q4Rows of_tile = {integers + r * inputs, row_scales + r * groups, row_sums + r * groups};
        q4_rows((int)(next - r), of_tile, packed + b * Q4_BLOCK * inputs / 2, scales + b * groups * 2 * Q4_BLOCK,
                inputs, group, bias ? bias + b * Q4_BLOCK : NULL, y + r * outputs + b * Q4_BLOCK, outputs);
      }
  }
}
