// Shared by all kernels: number types, 16-byte accesses, sums over warps and rows. Needs no headers, not even CUDA's.
//
// launch.py puts #defines and this file before a kernel's source. DTYPE is the type of activations: float, double, bfloat16 or
// half; WIDTH is the number of elements per access of a thread: 16 bytes' worth, or 1 if a row's length or an address does not
// allow that. Arithmetic is in Real: double for double, else float. g++ compiles the same sources for tests/cuda/emulator.
#pragma once

typedef long long Index;  // an offset into an array, which may hold more than 2^31 elements
struct bfloat16 { unsigned short bits; };
struct half { unsigned short bits; };

#ifdef __CUDACC__
// Dynamic shared memory, sized by the launch.
#define SHARED_MEMORY(T, name) \
  extern __shared__ __align__(128) uint4 dynamic_shared_memory[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared_memory)
#else
#define SHARED_MEMORY(T, name) T* const name = reinterpret_cast<T*>(emulator::dynamic_shared)
extern "C" float emulator_half_to_float(unsigned short);
extern "C" unsigned short emulator_float_to_half(float);
#endif

#ifndef DTYPE
#define DTYPE float
#endif
typedef DTYPE Element;
template <class T> struct RealOf { typedef float type; };
template <> struct RealOf<double> { typedef double type; };
typedef RealOf<Element>::type Real;

// ------------------------------------------------------------------------------------------------ numbers

template <class T> struct Convert {  // float and double
  static __device__ __forceinline__ T from(Real x) { return T(x); }
  static __device__ __forceinline__ Real to(T x) { return Real(x); }
};
template <> struct Convert<bfloat16> {
  static __device__ __forceinline__ bfloat16 from(float x) {  // to nearest even
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    bfloat16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
#else
    const unsigned bits = __float_as_uint(x);
    return {(unsigned short)(x != x ? 0x7FFFu : (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
#endif
  }
  static __device__ __forceinline__ float to(bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
};
template <> struct Convert<half> {
#ifdef __CUDACC__
  static __device__ __forceinline__ half from(float x) {
    half y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
  }
  static __device__ __forceinline__ float to(half x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
  }
#else
  static half from(float x) { return {emulator_float_to_half(x)}; }
  static float to(half x) { return emulator_half_to_float(x.bits); }
#endif
};
template <class T> __device__ __forceinline__ Real real(T x) { return Convert<T>::to(x); }
__device__ __forceinline__ Element element(Real x) { return Convert<Element>::from(x); }
__device__ __forceinline__ Real minus_infinity() { return __int_as_float(0xFF800000); }

// ------------------------------------------------------------------------------------------------ 16-byte accesses

// N adjacent elements in registers. Multiples of 16 bytes are moved 16 bytes at a time, one instruction per thread each.
template <class T, int N> struct Vector {
  static constexpr bool WIDE = sizeof(T) * N % 16 == 0;
  union {
    T at[N];
    uint4 words[WIDE ? sizeof(T) * N / 16 : 1];
  };
};

template <int N, class T> __device__ __forceinline__ Vector<T, N> load(const T* from) {
  Vector<T, N> v;
  if constexpr (Vector<T, N>::WIDE) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) * N / 16); i++) v.words[i] = reinterpret_cast<const uint4*>(from)[i];
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) v.at[i] = from[i];
  }
  return v;
}

template <int N, class T> __device__ __forceinline__ void store(T* to, const Vector<T, N>& v) {
  if constexpr (Vector<T, N>::WIDE) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) * N / 16); i++) reinterpret_cast<uint4*>(to)[i] = v.words[i];
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = v.at[i];
  }
}

// The same at the ends of a row or an array, where only elements first <= i < last exist; the others become `fill`.
template <int N, class T> __device__ __forceinline__ Vector<T, N> load(const T* from, Index first, Index last, T fill) {
  if (first <= 0 && last >= N) return load<N>(from);
  Vector<T, N> v;
#pragma unroll
  for (int i = 0; i < N; i++) v.at[i] = i >= first && i < last ? from[i] : fill;
  return v;
}

template <int N, class T> __device__ __forceinline__ void store(T* to, const Vector<T, N>& v, Index first, Index last) {
  if (first <= 0 && last >= N) return store(to, v);
#pragma unroll
  for (int i = 0; i < N; i++)
    if (i >= first && i < last) to[i] = v.at[i];
}

// ------------------------------------------------------------------------------------------------ sums

// Every lane gets the same bits, because x + y = y + x.
template <class T> __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x += __shfl_xor_sync(0xFFFFFFFFu, x, step);
  return x;
}

template <class T> __device__ __forceinline__ T warp_max(T x) {
#pragma unroll
  for (int step = 16; step; step >>= 1) x = max(x, __shfl_xor_sync(0xFFFFFFFFu, x, step));
  return x;
}

// The sum over the threads of one row: blockDim.x of them, a multiple of 32; a block has blockDim.y rows. All threads of the
// block must call it. `partial` is shared memory, one number per warp of the block; it may be reused right after the call.
template <class T> __device__ __forceinline__ T row_sum(T x, T* partial) {
  x = warp_sum(x);
  const int warps = blockDim.x / 32;
  if (warps == 1) return x;  // the same for all threads
  const int lane = threadIdx.x % 32;
  T* const of_row = partial + threadIdx.y * warps;
  if (lane == 0) of_row[threadIdx.x / 32] = x;
  __syncthreads();
  x = warp_sum(lane < warps ? of_row[lane] : T(0));
  __syncthreads();
  return x;
}

template <class T> __device__ __forceinline__ T row_max(T x, T* partial) {
  x = warp_max(x);
  const int warps = blockDim.x / 32;
  if (warps == 1) return x;
  const int lane = threadIdx.x % 32;
  T* const of_row = partial + threadIdx.y * warps;
  if (lane == 0) of_row[threadIdx.x / 32] = x;
  __syncthreads();
  x = warp_max(of_row[lane < warps ? lane : 0]);
  __syncthreads();
  return x;
}
