/* What the kernels share: CPUs with AVX2 and FMA, and OpenMP's threads, the pool that torch itself uses.
 *
 * Every output is summed in one order, whatever the number of rows: a row's result does not depend on its neighbours,
 * bit for bit. Pointers are to contiguous memory; row-major; sizes are checked by the caller.
 */

#ifndef EFFICIENT_ROLLOUT_COMMON_H
#define EFFICIENT_ROLLOUT_COMMON_H

#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

INLINE float horizontal_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

/* The half-open share [*first, *last) of `count` pieces that belongs to the calling thread. */
INLINE void my_share(long count, long *first, long *last) {
  long threads = omp_get_num_threads(), thread = omp_get_thread_num();
  *first = count * thread / threads;
  *last = count * (thread + 1) / threads;
}

#endif
