// Tensor core instructions, and the copies that feed them, for which CUDA C++ has no plain functions (sm_80 and later).
//
//   multiply_add      d += a b: a is 16 x 16, b is 16 x 8, d is 16 x 8 of floats, spread over the 32 lanes of a warp
//   load_matrices     four 8 x 8 matrices of 2-byte elements, from shared memory into the layout of multiply_add
//   copy_async        global -> shared memory without passing through registers, while the thread continues
//
// Elements per lane, with g = lane / 4 and c = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"; two elements a register):
//   a[0], a[1]   rows g, g + 8, columns 2c, 2c + 1            a[2], a[3]   the same rows, columns 8 further
//   b[0], b[1]   rows 2c, 2c + 1, and 8 further, of column g
//   d[0], d[1]   row g, columns 2c, 2c + 1                    d[2], d[3]   row g + 8
// So d, once packed in pairs, can be the operand a of the next product: lanes hold the same rows.

#ifdef __CUDACC__

__device__ __forceinline__ void multiply_add(float* d, const unsigned* a, const unsigned* b, bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void multiply_add(float* d, const unsigned* a, const unsigned* b, half) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two floats, rounded to nearest, in one register; `low` comes first in memory.
__device__ __forceinline__ unsigned pack(float low, float high, bfloat16) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ unsigned pack(float low, float high, half) {
  unsigned pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return unsigned(__cvta_generic_to_shared(p)); }

// Lane 8 i + j gives the address of row j (16 bytes) of matrix i; it receives row g, columns 2c, 2c + 1 of each of the four.
__device__ __forceinline__ void load_matrices(unsigned* r, unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// The same, each matrix transposed: a lane receives rows 2c, 2c + 1 of column g.
__device__ __forceinline__ void load_matrices_transposed(unsigned* r, unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(row) : "memory");
}

// 16 bytes, bypassing L1, or zeros if there is nothing to copy (then `from` is not read).
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0) : "memory");
}

__device__ __forceinline__ void copy_async_4(void* to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               ::"r"(shared_address(to)), "l"(from), "r"(there ? 4 : 0) : "memory");
}

// Groups a thread's copies since its last call. Other threads may read them after its copy_wait and a barrier.
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int GROUPS_LEFT> __device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}

#else
#include <tensor_cores.h>  // tests/cuda/emulator: the same functions on a CPU
#endif
