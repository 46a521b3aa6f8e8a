// Dropout:  out = x * m / (1 - p),   m from a hash of (key, index)                          numllama/ops/dropout.py
//
// Rows:    none: a thread takes WIDTH elements anywhere.
// Fused:   the mask is computed where it is used, forward and backward (the same kernel); it never is in memory.
// Floor:   reads x, writes out: 2 n elements.

__device__ __forceinline__ unsigned mix(unsigned h) {  // lowbias32
  h = (h ^ (h >> 16)) * 0x7FEB352Du;
  h = (h ^ (h >> 15)) * 0x846CA68Bu;
  return h ^ (h >> 16);
}

extern "C" __global__ void __launch_bounds__(256) dropout(
    Element* __restrict__ out, const Element* __restrict__ x, Index n, const unsigned* key, unsigned low, unsigned high,
    unsigned threshold, Real scale) {
  const Index at = (Index(blockIdx.x) * blockDim.x + threadIdx.x) * WIDTH, left = n - at;
  if (left <= 0) return;
  if (key) low = key[0], high = key[1];  // from memory, where it changes from step to step
  Vector<Element, WIDTH> v = load<WIDTH>(x + at, 0, left, Element());
#pragma unroll
  for (int i = 0; i < WIDTH; i++) {
    const bool kept = mix(mix(unsigned(at + i) ^ low) ^ high) >= threshold;
    v.at[i] = element(real(v.at[i]) * (kept ? scale : Real(0)));  // a product, so that NaN stays NaN
  }
  store(out + at, v, 0, left);
}
