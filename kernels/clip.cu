// The norm of all gradients:  norm = sqrt(sum of g^2)                                       numllama/optim/clip.py
// and what they are multiplied by then:  factor = min(1, max_norm / norm)
//
// Rows:    none: a block takes 256 * PER_THREAD vectors that lie together, a thread PER_THREAD of them; one more block adds the
//          blocks' sums, in float64 and in a fixed order.
// Fused:   square, sum and root.
// Floor:   reads n elements.
#define PER_THREAD 16

extern "C" __global__ void __launch_bounds__(256) square_sums(double* __restrict__ sums, const Element* __restrict__ g, Index n) {
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
}

extern "C" __global__ void __launch_bounds__(1024) root_of_sums(double* norm, const double* sums, int n) {
  __shared__ double partial[32];
  double sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += sums[i];
  sum = row_sum(sum, partial);
  if (threadIdx.x == 0) norm[0] = sqrt(sum);
}

// What a step is about, for whoever reads it on the host: (loss, norm, factor). The factor is 0 where there is to be no step.
extern "C" __global__ void clip_factor(double* result, const double* norm, const Real* losses, int n, double max_norm) {
  double loss = 0;
  for (int i = 0; i < n; i++) loss += double(losses[i]);
  const bool finite = loss - loss == 0 && norm[0] - norm[0] == 0;
  result[0] = loss;
  result[1] = norm[0];
  result[2] = !finite ? 0 : norm[0] > max_norm ? max_norm / (norm[0] + 1e-6) : 1;
}
