/* Decoding a few positions of a few sequences in float32: products, and attention over a paged cache. */

#include "common.h"

/* ---- products ------------------------------------------------------------------------------------------------- */

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
