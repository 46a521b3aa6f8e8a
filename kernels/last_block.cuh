// Sums over all blocks of a launch, in a fixed order, without a second launch and without float atomics.
//
// Each block writes its part to memory and increments `arrived`. The block that arrives last finds all parts in memory and adds
// them in the order of their indices: the same bits each time. `arrived` is 0 before and after a launch.
#pragma once

// True for every thread of the last of n blocks to arrive; it sees everything the others wrote before they arrived.
__device__ __forceinline__ bool arrives_last(unsigned* arrived, int n) {
  __shared__ bool is_last;
  __threadfence();                                                     // writes of this thread come before the count
  __syncthreads();
  if (threadIdx.x == 0 && threadIdx.y == 0) {
    is_last = atomicAdd(arrived, 1u) == unsigned(n - 1);
    if (is_last) *arrived = 0;
  }
  __syncthreads();
  if (is_last) __threadfence();                                        // and reads come after it
  return is_last;
}

#define GROUP 16  // rows that one block adds up: GROUP * GROUP or more by a single block would take longer than all the rest

__device__ __forceinline__ int groups(int n) { return (n + GROUP - 1) / GROUP; }

// The sum of rows of C numbers, one just written by each block, with space for groups(gridDim.x) more after them.
// The last block of each GROUP adds up the group's rows, and the last of all adds those sums and calls write(c, sum).
template <class T, class Write>
__device__ __forceinline__ void sum_over_blocks(T* rows, unsigned* arrived, int C, const Write& write) {
  const int n = gridDim.x, group = blockIdx.x / GROUP, first = group * GROUP, members = min(GROUP, n - first);
  const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
  const volatile T* const parts = rows;                                // other blocks write them: bypass this one's cache
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
