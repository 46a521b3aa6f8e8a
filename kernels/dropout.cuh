// Dropout's mask: the factor of the number at an index. Computed where it is used, never stored.
#pragma once

struct Mask {
  unsigned low, high, threshold;
  Real scale;
  // `key`, if given, is in memory, because it changes from step to step.
  __device__ __forceinline__ Mask(const unsigned* key, unsigned low, unsigned high, unsigned threshold, Real scale)
      : low(key ? key[0] : low), high(key ? key[1] : high), threshold(threshold), scale(scale) {}
  static __device__ __forceinline__ unsigned mix(unsigned h) {  // lowbias32
    h = (h ^ (h >> 16)) * 0x7FEB352Du;
    h = (h ^ (h >> 15)) * 0x846CA68Bu;
    return h ^ (h >> 16);
  }
  __device__ __forceinline__ Real at(Index index) const {
    return mix(mix(unsigned(index) ^ low) ^ high) >= threshold ? scale : Real(0);
  }
};
