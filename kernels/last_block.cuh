// Sums over all blocks of a launch, in a fixed order, without a second launch and without float atomics.
//
// Each block leaves its part in memory and counts itself as arrived. The one that arrives last, whichever it is, finds the parts of
// all others and adds them in the order of their indices: the same bits each time. `arrived` is 0 before and after a launch.
#pragma once

// True for every thread of the block that arrives last of n: it sees what the others wrote before they arrived.
__device__ __forceinline__ bool arrives_last(unsigned* arrived, int n) {
  __shared__ bool is_last;
  __threadfence();                                                     // what this thread wrote, before the block is counted
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    is_last = atomicAdd(arrived, 1u) == unsigned(n - 1);
    if (is_last) *arrived = 0;
  }
  __syncthreads();
  if (is_last) __threadfence();                                        // and nothing is read before the count
  return is_last;
}

#define GROUP 16  // rows that one block adds up: GROUP * GROUP and more rows by a single block would take longer than all the rest

__device__ __forceinline__ int groups(int n) { return (n + GROUP - 1) / GROUP; }

// The sum of rows of C numbers, of which each block has just written its own; behind them is room for groups(gridDim.x) more.
// GROUP blocks at a time are added up by the last of them, those sums by the last of all, which then calls write(c, sum).
template <class T, class Write>
__device__ __forceinline__ void sum_over_blocks(T* rows, unsigned* arrived, int C, const Write& write) {
  const int n = gridDim.x, group = blockIdx.x / GROUP, first = group * GROUP, members = min(GROUP, n - first);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  const volatile T* const parts = rows;                                // other blocks write them: not from a cache of this one
  if (!arrives_last(arrived + 1 + group, members)) return;
  for (int c = thread; c < C; c += threads) {
    T sum = 0;
#pragma unroll 4
    for (int i = 0; i < members; i++) sum += parts[Index(first + i) * C + c];
    rows[Index(n + group) * C + c] = sum;
  }
  if (!arrives_last(arrived, groups(n))) return;
  for (int c = thread; c < C; c += threads) {
    T sum = 0;
#pragma unroll 4
    for (int i = 0; i < groups(n); i++) sum += parts[Index(n + i) * C + c];
    write(c, sum);
  }
}
