// Kernels on kernels/tensor_cores.cuh: a product, and copies with a bug where PLANTED is 1.
#include "tensor_cores.cuh"

// One warp: out (16, 8) = a (16, 16) b (16, 8), with b read as it is (transposed on the way), or from its transpose (8, 16).
extern "C" __global__ void product(float* out, const Element* a, const Element* b, int b_is_transposed) {
  SHARED_MEMORY(Element, tile);
  const int lane = threadIdx.x;
  for (int i = lane; i < 512; i += 32) tile[i] = i < 256 ? a[i] : i < 384 ? b[i - 256] : Element{0};
  __syncwarp();
  unsigned x[4], y[4];
  load_matrices(x, shared_address(tile + lane % 16 * 16 + lane / 16 * 8));
  if (b_is_transposed) load_matrices(y, shared_address(tile + 256 + lane % 8 * 16 + lane / 8 % 2 * 8));
  else load_matrices_transposed(y, shared_address(tile + 256 + lane % 16 * 8));
  float d[4] = {1, 1, 1, 1};                        // it adds
  multiply_add(d, x, y, Element());
  for (int i = 0; i < 4; i++) out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// Each thread copies 16 bytes for its neighbour. A missing wait or barrier, or the next copy too early, must be seen.
extern "C" __global__ void copies(float* out, const float* in, int rounds) {
  SHARED_MEMORY(float4, tile);
  const int threads = blockDim.x, i = threadIdx.x;
  copy_async_16(tile + i, in + 4 * i, true);
  copy_commit();
  for (int n = 0; n < rounds; n++) {
    float4* const next = tile + (n + 1) % 2 * threads;
#if PLANTED == 1
    if (n + 1 < rounds) copy_async_16(next + i, in + 4 * ((n + 1) * threads + i), i < threads - 1);
    copy_commit();
    copy_wait<1>();                                 // this round has arrived, but others may still read the one before
    __syncthreads();
#else
#if PLANTED == 2
    copy_wait<1>();                                 // of one group: no wait at all
#else
    copy_wait<0>();
#endif
#if PLANTED != 3
    __syncthreads();
#endif
    if (n + 1 < rounds) copy_async_16(next + i, in + 4 * ((n + 1) * threads + i), i < threads - 1);
    copy_commit();
#endif
    const float4 mine = tile[n % 2 * threads + (i + 32) % threads];
    out[n * threads + i] = mine.x + mine.y + mine.z + mine.w;
  }
}

extern "C" __global__ void misplaced(float* out, const float* in, int offset) {
  SHARED_MEMORY(float, tile);
  copy_async_16(tile + offset, in, true);
  copy_wait<0>();
  out[0] = tile[0];
}
