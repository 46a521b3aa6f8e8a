// Cross-entropy:  loss = sum of (lse - logits[target]) / count                              numllama/ops/cross_entropy.py
//
// Rows:    32 to 512 threads for a row of V logits; several short rows in a block. Any V and start: see softmax.cuh.
// Fused:   maximum and sum of a row in one pass, then its loss; one block adds all rows in a fixed order. Backward never makes
//          p or a one-hot row: each logit becomes its gradient, in the same place if `dlogits` is `logits`.
// Floor:   forward reads N V elements. Backward reads and writes N V elements.
#include "softmax.cuh"
typedef TARGET Target;

extern "C" __global__ void __launch_bounds__(512, 1) cross_entropy_rows(
    Real* losses, Real* lse, Target* kept, const Element* logits, const Target* targets, int N, int V, Target ignored) {
  __shared__ Real partial[32];
  const int n = blockIdx.x * blockDim.y + threadIdx.y;
  const Row row = row_of(min(n, N - 1), V);
  Real top, sum;
  top_and_sum(logits, row, partial, top, sum);
  if (n >= N || threadIdx.x > 0) return;
  const Target target = targets[n];
  const bool counts = target != ignored, valid = target >= 0 && target < V;
  const Real z = top + log(sum);
  lse[n] = z;
  kept[n] = counts ? target : Target(-1);
  // An id outside of the vocabulary, which the caller should have refused, must not be an address: NaN shows.
  losses[n] = !counts ? Real(0) : valid ? z - real(logits[Index(n) * V + target]) : minus_infinity() - minus_infinity();
}

// One block: the sum of all rows, over how many of them count, or over `count` if that is not 0.
extern "C" __global__ void __launch_bounds__(1024) cross_entropy_sum(
    Real* loss, Real* count_out, const Real* losses, const Target* kept, int N, Real count) {
  __shared__ Real partial[32];
  Real sum = 0, counted = 0;
  for (int n = threadIdx.x; n < N; n += blockDim.x) {
    sum += losses[n];
    counted += kept[n] >= 0;
  }
  sum = row_sum(sum, partial);
  counted = row_sum(counted, partial);
  if (threadIdx.x > 0) return;
  count = count != 0 ? count : max(counted, Real(1));
  count_out[0] = count;
  loss[0] = sum / count;
}

// dlogits = (exp(logits - lse) - onehot(target)) * dout / count, where dout is `douts[0]` if there is one.
extern "C" __global__ void __launch_bounds__(512, 1) cross_entropy_backward(
    Element* dlogits, const Element* logits, const Target* kept, const Real* lse, const Real* count, const Real* douts,
    Real dout, int N, int V) {
  const int n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n >= N) return;
  const Row row = row_of(n, V);
  const Index target = Index(kept[n]) + row.skew;  // counted from the first vector's beginning
  const Real z = lse[n], scale = kept[n] < 0 ? Real(0) : (douts ? douts[0] : dout) / count[0];
  for (int j = threadIdx.x * WIDTH; j < row.skew + V; j += blockDim.x * WIDTH) {
    Vector<Element, WIDTH> v = load_piece(logits, row, j);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
      const Real p = exp(real(v.at[i]) - z);
      v.at[i] = element(p * scale - (j + i == target ? scale : Real(0)));
    }
    store_piece(dlogits, v, row, j);
  }
}
