// Cross-entropy:  loss = sum of (lse - logits[target]) / count                              numllama/ops/cross_entropy.py
//
// Rows:    32 to 512 threads per row of V logits, `stride` elements from the next; several short rows per block, which loops
//          over more if there are very many. Any V, stride and start: see softmax.cuh.
// Fused:   maximum and sum of a row in one pass, then its loss; each block adds up its rows, the last one all blocks, in a fixed
//          order. Backward stores neither p nor one-hot rows: each logit becomes its gradient, in place if `dlogits` is
//          `logits`.
// Floor:   forward reads N V elements. Backward reads and writes N V elements.
#include "last_block.cuh"
#include "softmax.cuh"
typedef TARGET Target;

// The sum over all threads of a block, returned to each. `partial` has one number per warp of the block.
__device__ __forceinline__ Real block_sum(Real x, Real* partial) {
  x = row_sum(x, partial);
  __shared__ Real of_rows[32];
  if (threadIdx.x == 0) of_rows[threadIdx.y] = x;
  __syncthreads();
  x = 0;
  for (int y = 0; y < blockDim.y; y++) x += of_rows[y];
  __syncthreads();
  return x;
}

// loss = the sum over rows, divided by the number counted, or by `counts[0]` or `count` if given. `sums` (2, gridDim.x).
extern "C" __global__ void __launch_bounds__(512, 1) cross_entropy_forward(
    Real* loss, Real* count_out, Real* sums, unsigned* arrived, Real* lse, Target* kept, const Element* logits,
    const Target* targets, int N, int V, Index stride, Target ignored, const Real* counts, Real count) {
  __shared__ Real partial[32];
  Real losses = 0, counted = 0;
  for (Index first = Index(blockIdx.x) * blockDim.y; first < N; first += Index(gridDim.x) * blockDim.y) {
    const Index n = first + threadIdx.y;
    const Row row = row_of(min(n, Index(N - 1)), V, stride);
    Real top, sum;
    top_and_sum(logits, row, partial, top, sum);
    if (n >= N || threadIdx.x > 0) continue;
    const Target target = targets[n];
    const bool counts = target != ignored, valid = target >= 0 && target < V;
    const Real z = top + log(sum);
    lse[n] = z;
    kept[n] = counts ? target : Target(-1);
    // An id outside the vocabulary, which the caller should have rejected, must not become an address: NaN.
    if (counts) losses += valid ? z - real(logits[n * stride + target]) : minus_infinity() - minus_infinity();
    counted += counts;
  }
  losses = block_sum(losses, partial);
  counted = block_sum(counted, partial);
  const int blocks = gridDim.x, thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread == 0) {
    sums[blockIdx.x] = losses;
    sums[blocks + blockIdx.x] = counted;
  }
  if (!arrives_last(arrived, blocks)) return;
  const volatile Real* const of_blocks = sums;
  losses = counted = 0;
#pragma unroll 4
  for (int i = thread; i < blocks; i += blockDim.x * blockDim.y) {
    losses += of_blocks[i];
    counted += of_blocks[blocks + i];
  }
  losses = block_sum(losses, partial);
  counted = block_sum(counted, partial);
  if (thread > 0) return;
  if (counts) count = counts[0];
  count = count != 0 ? count : max(counted, Real(1));
  count_out[0] = count;
  loss[0] = losses / count;
}

// dlogits = (exp(logits - lse) - onehot(target)) * dout / count, where dout is `douts[0]` if given.
extern "C" __global__ void __launch_bounds__(512, 1) cross_entropy_backward(
    Element* dlogits, const Element* logits, const Target* kept, const Real* lse, const Real* count, const Real* douts,
    Real dout, int N, int V, Index stride) {
  const int n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n >= N) return;
  const Row row = row_of(n, V, stride);
  const Index target = Index(kept[n]) + row.skew;  // offset from the first vector's start
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
