// The norm of all gradients:  norm = sqrt(sum of g^2)                                       numllama/optim/clip.py
// and the factor that clips them:        factor = min(1, max_norm / norm)
//
// Rows:    none: a block takes 256 * PER_THREAD contiguous vectors, a thread PER_THREAD of them; the last block adds the
//          blocks' sums, in float64 and in a fixed order.
// Fused:   square, sum and root; the loss and the factor of a recorded step.
// Floor:   reads n elements.
#include "last_block.cuh"
#define PER_THREAD 16

// result = (loss, norm, factor): the sum of the losses, the norm, and the factor of the gradients, 0 to skip the step.
// Without losses: only the norm.
extern "C" __global__ void __launch_bounds__(256) gradient_norm(
    double* result, double* sums, unsigned* arrived, const Element* __restrict__ g, Index n, const Real* losses, int n_losses,
    double max_norm) {
  __shared__ double partial[32];
  const Index start = Index(blockIdx.x) * 256 * PER_THREAD * WIDTH;
  double sum = 0;
#pragma unroll 4
  for (int k = 0; k < PER_THREAD; k++) {
    const Index at = start + (k * 256 + threadIdx.x) * WIDTH, left = n - at;
    if (left <= 0) break;
    const Vector<Element, WIDTH> v = load<WIDTH>(g + at, 0, left, Element());
    Real squares = 0;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) squares += real(v.at[i]) * real(v.at[i]);
    sum += squares;
  }
  sum = row_sum(sum, partial);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  if (!arrives_last(arrived, gridDim.x)) return;
  const volatile double* const of_blocks = sums;
  sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < gridDim.x; i += 256) sum += of_blocks[i];
  sum = row_sum(sum, partial);
  if (threadIdx.x > 0) return;
  const double norm = sqrt(sum);
  result[1] = norm;
  if (!losses) return;
  double loss = 0;
  for (int i = 0; i < n_losses; i++) loss += double(losses[i]);
  const bool finite = loss - loss == 0 && norm - norm == 0;
  result[0] = loss;
  result[2] = !finite ? 0 : norm > max_norm ? max_norm / (norm + 1e-6) : 1;
}
