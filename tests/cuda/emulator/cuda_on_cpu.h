// What a .cu file finds in place of CUDA when g++ compiles it: the language's words, its built-in variables and functions.
// No header of the system is included, so that a kernel compiles in a fraction of a second. See runtime.cc for how it runs.
#pragma once

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) __attribute__((aligned(n)))
// All of a file's shared variables lie in one section, which is poisoned before each block.
#define __shared__ static __attribute__((section("shared_memory")))

struct uint2 { unsigned x, y; } __attribute__((aligned(8)));
struct uint3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; } __attribute__((aligned(16)));
struct float2 { float x, y; } __attribute__((aligned(8)));
struct float4 { float x, y, z, w; } __attribute__((aligned(16)));
struct dim3 { unsigned x, y, z; };
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

namespace emulator {
extern char* dynamic_shared;                 // of the block that runs
extern unsigned long dynamic_shared_bytes;
extern unsigned long block_number;           // how many blocks have begun: what a thread keeps belongs to one of them
void fail(const char* format, ...);          // ends the launch with this message; the thread never goes on
void wait_for_block();
int thread();                                // the running thread's number within its block
typedef void (*Combine)(void** arguments, unsigned mask);
// Suspends a lane until all lanes of `mask` have called with the same `combine`, which then runs once over the arguments of
// all 32 lanes (null for those outside of the mask) and leaves its results in them.
void collective(unsigned mask, void* argument, Combine combine);
template <class T> inline T copied(const void* from) { T to; __builtin_memcpy(&to, from, sizeof to); return to; }
}  // namespace emulator

// ------------------------------------------------------------------------------------------------ synchronisation, warps

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(unsigned mask = ~0u) { emulator::collective(mask, 0, [](void**, unsigned) {}); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emulator {
template <class T> struct Shuffle { T given, taken; int source; };
template <class T> inline T shuffle(unsigned mask, T value, int source) {
  Shuffle<T> mine = {value, value, source};
  collective(mask, &mine, [](void** lanes, unsigned mask) {
    for (int i = 0; i < 32; i++) {
      if (!(mask >> i & 1)) continue;
      auto* to = (Shuffle<T>*)lanes[i];
      auto* from = (Shuffle<T>*)lanes[to->source & 31];
      if (!from) return fail("a shuffle reads lane %d, which its mask 0x%08x leaves out", to->source, mask);
      to->taken = from->given;
    }
  });
  return mine.taken;
}
struct Vote { bool mine; unsigned all; };
inline unsigned vote(unsigned mask, bool mine) {
  Vote value = {mine, 0};
  collective(mask, &value, [](void** lanes, unsigned mask) {
    unsigned all = 0;
    for (int i = 0; i < 32; i++) if (mask >> i & 1 && ((Vote*)lanes[i])->mine) all |= 1u << i;
    for (int i = 0; i < 32; i++) if (mask >> i & 1) ((Vote*)lanes[i])->all = all;
  });
  return value.all;
}
}  // namespace emulator

template <class T> inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = emulator::thread() & 31;
  return emulator::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T> inline T __shfl_xor_sync(unsigned mask, T value, int x, int width = 32) {
  const int lane = emulator::thread() & 31, source = lane ^ x;
  return emulator::shuffle(mask, value, (source & ~(width - 1)) <= (lane & ~(width - 1)) ? source : lane);
}
template <class T> inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = emulator::thread() & 31;
  return emulator::shuffle(mask, value, (lane & (width - 1)) + (int)by < width ? lane + (int)by : lane);
}
template <class T> inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int lane = emulator::thread() & 31;
  return emulator::shuffle(mask, value, (lane & (width - 1)) >= (int)by ? lane - (int)by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int p) { return emulator::vote(mask, p != 0); }
inline int __any_sync(unsigned mask, int p) { return emulator::vote(mask, p != 0) != 0; }
inline int __all_sync(unsigned mask, int p) { return emulator::vote(mask, p != 0) == mask; }

// One thread runs at a time, and only a barrier or a collective lets another one in: plain accesses are atomic.
template <class T> inline T atomicAdd(T* at, T value) { const T old = *at; *at = old + value; return old; }
template <class T> inline T atomicMax(T* at, T value) { const T old = *at; *at = value > old ? value : old; return old; }
template <class T> inline T atomicMin(T* at, T value) { const T old = *at; *at = value < old ? value : old; return old; }
template <class T> inline T atomicExch(T* at, T value) { const T old = *at; *at = value; return old; }
template <class T> inline T atomicCAS(T* at, T expected, T value) {
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

// ------------------------------------------------------------------------------------------------ functions

extern "C" {
float expf(float) noexcept; float exp2f(float) noexcept; float logf(float) noexcept; float log2f(float) noexcept;
float sqrtf(float) noexcept; float tanhf(float) noexcept; float fabsf(float) noexcept; float fmaf(float, float, float) noexcept;
float fmaxf(float, float) noexcept; float fminf(float, float) noexcept; float powf(float, float) noexcept;
double exp(double) noexcept; double exp2(double) noexcept; double log(double) noexcept; double log2(double) noexcept;
double sqrt(double) noexcept; double tanh(double) noexcept; double fabs(double) noexcept;
double fma(double, double, double) noexcept; double fmax(double, double) noexcept; double fmin(double, double) noexcept;
}
inline float exp(float x) { return expf(x); }
inline float exp2(float x) { return exp2f(x); }
inline float log(float x) { return logf(x); }
inline float sqrt(float x) { return sqrtf(x); }
inline float tanh(float x) { return tanhf(x); }
inline float fabs(float x) { return fabsf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float __uint_as_float(unsigned x) { return emulator::copied<float>(&x); }
inline float __int_as_float(int x) { return emulator::copied<float>(&x); }
inline unsigned __float_as_uint(float x) { return emulator::copied<unsigned>(&x); }
inline int __float_as_int(float x) { return emulator::copied<int>(&x); }
inline long long __double_as_longlong(double x) { return emulator::copied<long long>(&x); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class T> inline T __ldg(const T* from) { return *from; }
inline unsigned __cvta_generic_to_shared(const void* at) {
  const long offset = (const char*)at - emulator::dynamic_shared;
  return (unsigned)offset;
}
