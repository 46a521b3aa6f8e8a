// Kernels with a bug each, which the emulator must find, and a few without. PLANTED is 1 where the bug is there.

// One block a row: y = x / sum of the row. Without its second barrier, warps read what others have not written yet.
extern "C" __global__ void missing_barrier(float* y, const float* x, int n) {
  __shared__ float partial[32];
  float sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
#if !PLANTED
  __syncthreads();
#endif
  sum = 0;
  for (int w = 0; w < blockDim.x / 32; w++) sum += partial[w];
  for (int i = threadIdx.x; i < n; i += blockDim.x) y[blockIdx.x * n + i] = x[blockIdx.x * n + i] / sum;
}

// A buffer in shared memory that is filled again while slow warps still read it.
extern "C" __global__ void early_overwrite(float* y, const float* x, int n) {
  SHARED_MEMORY(float, tile);
  float sum = 0;
  for (int start = 0; start < n; start += blockDim.x) {
    tile[threadIdx.x] = x[start + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < blockDim.x; i++) sum += tile[i];
#if !PLANTED
    __syncthreads();
#endif
  }
  y[threadIdx.x] = sum;
}

// Lanes of a warp exchange through shared memory, which since Volta takes a __syncwarp.
extern "C" __global__ void missing_syncwarp(float* y, const float* x) {
  __shared__ float tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
#if !PLANTED
  __syncwarp();
#endif
  y[threadIdx.x] = tile[31 - threadIdx.x];
}

// Half of a warp shuffles with the whole warp's mask.
extern "C" __global__ void divergent_shuffle(float* y) {
  float value = threadIdx.x;
  if (!PLANTED || threadIdx.x < 16) value = warp_sum(value);
  y[threadIdx.x] = value;
}

extern "C" __global__ void left_out_of_the_mask(float* y) {
  y[threadIdx.x] = __shfl_xor_sync(PLANTED ? 0xFFFFu : 0xFFFFFFFFu, float(threadIdx.x), 1);
}

// Threads beyond the end return before a barrier that the others wait at.
extern "C" __global__ void barrier_that_some_never_reach(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (PLANTED && i >= n) return;
  __syncthreads();
  if (i < n) y[i] = i;
}

extern "C" __global__ void read_out_of_bounds(float* y, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i + PLANTED];
}

// Every row of n floats, four at a time; rows of another length than a multiple of four begin between.
extern "C" __global__ void misaligned(float* y, const float* x, int n) {
  for (int i = 0; i + 4 <= n; i += 4) store(y + blockIdx.x * n + i, load<4>(x + blockIdx.x * n + i));
}

extern "C" __global__ void unwritten_output(float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n - PLANTED) y[i] = i;
}

extern "C" __global__ void unwritten_shared(float* y) {
  SHARED_MEMORY(float, tile);
  if (threadIdx.x < blockDim.x - PLANTED) tile[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void shared_of_the_block_before(float* y) {
  __shared__ float total;
  if (!PLANTED || blockIdx.x == 0) total = 1;
  __syncthreads();
  y[blockIdx.x] = total;
}

#ifndef TILE
#define TILE 100
#endif
extern "C" __global__ void much_shared_memory(float* y) {
  __shared__ float tile[TILE];
  tile[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// ------------------------------------------------------------------------------------------------ without a bug

extern "C" __global__ void indices(int* y) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  y[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}

extern "C" __global__ void warp_functions(int* y) {
  const int lane = threadIdx.x;
  y[lane] = __shfl_sync(0xFFFFFFFFu, lane, 5);
  y[32 + lane] = __shfl_xor_sync(0xFFFFFFFFu, lane, 6);
  y[64 + lane] = __shfl_down_sync(0xFFFFFFFFu, lane, 3);
  y[96 + lane] = __shfl_up_sync(0xFFFFFFFFu, lane, 3);
  y[128 + lane] = __shfl_sync(0xFFFFFFFFu, lane, 9, 8);
  y[160 + lane] = __shfl_down_sync(0xFFFFFFFFu, lane, 3, 8);
  y[192 + lane] = int(__ballot_sync(0xFFFFFFFFu, lane % 3 == 0));
  y[224 + lane] = __any_sync(0xFFFFFFFFu, lane == 7) + 2 * __all_sync(0xFFFFFFFFu, lane < 31);
  if (lane < 8) y[256 + lane] = __shfl_xor_sync(0xFFu, lane, 1);
}

extern "C" __global__ void conversions(Element* y, float* back, const float* x, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  y[i] = element(x[i]);
  back[i] = real(y[i]);
}

extern "C" __global__ void takes_all_kinds(const Element* a, int b, long long c, Real d, unsigned e, float* f) { f[0] = float(b); }
