// What cuBLAS promises of the functions that the package calls, with the prototypes of cublas_api.h: a caller that passes an argument of
// another size, or in another place, gets another product here too.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include <vector>

#include "device.h"

using device::problem;
#define CHECKED(condition, what) if (!(condition)) return problem(std::string("cuBLAS: ") + what, 7);

extern "C" float emulator_half_to_float(unsigned short);
extern "C" unsigned short emulator_float_to_half(float);

struct Handle { void* stream; void* workspace; size_t bytes; int math; };
extern "C" {
int failing = 0;  // the status that every product returns

int handles = 0;  // that are there
int version = MAJOR;

int cublasCreate_v2(Handle** handle) { *handle = new Handle(); handles++; return 0; }
int cublasDestroy_v2(Handle* handle) { delete handle; handles--; return 0; }
int cublasSetStream_v2(Handle* h, void* stream) { h->stream = stream; h->workspace = nullptr; h->bytes = 0; return 0; }
int cublasSetWorkspace_v2(Handle* h, void* workspace, size_t bytes) {
  CHECKED((uintptr_t)workspace % 256 == 0, "a workspace that is not aligned");
  h->workspace = workspace; h->bytes = bytes;
  return 0;
}
int cublasSetMathMode(Handle* h, int mode) { h->math = mode; return 0; }
}

enum { F32 = 0, F64 = 1, F16 = 2, BF16 = 14 };
static double read(const void* from, int type, long long i) {
  if (type == F64) return ((const double*)from)[i];
  if (type == F32) return ((const float*)from)[i];
  const uint16_t two = ((const uint16_t*)from)[i];
  if (type == F16) return emulator_half_to_float(two);
  const uint32_t bits = uint32_t(two) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static void write(void* to, int type, long long i, double value) {
  const float single = float(value);
  uint32_t bits;
  memcpy(&bits, &single, 4);
  if (type == F64) ((double*)to)[i] = value;
  if (type == F32) ((float*)to)[i] = single;
  if (type == F16) ((uint16_t*)to)[i] = emulator_float_to_half(single);
  if (type == BF16) ((uint16_t*)to)[i] = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

extern "C" int cublasGemmStridedBatchedEx(Handle* h, int transa, int transb, int m, int n, int k, const void* alpha, const void* A,
                                          int Atype, int lda, long long strideA, const void* B, int Btype, int ldb,
                                          long long strideB, const void* beta, void* C, int Ctype, int ldc, long long strideC,
                                          int batch, int compute, int algo) {
  if (failing) return failing;
  const bool is_double = Atype == F64;
  const bool known = is_double ? compute == 70 : compute == 68 || (compute == 77 && Atype == F32);
  CHECKED(h->workspace && h->bytes >= (32u << 20), "a product without a workspace");
  CHECKED(h->math == 16 && Atype == Btype && known && algo == -1, "a product of these types, or by these rules");
  CHECKED(m > 0 && n > 0 && k > 0 && batch > 0, "an empty product");
  CHECKED(lda >= (transa ? k : m) && ldb >= (transb ? n : k) && ldc >= m, "a leading dimension that is too small");
  if (Ctype != Atype && Ctype != F32) return 15;
  const auto holds = [](const void* at, int type, int leading, int columns, int rows, long long stride, int batch) {
    const size_t size = type == F64 ? 8 : type == F32 ? 4 : 2;
    return device::is_device_memory(at, size * ((batch - 1) * stride + (columns - 1) * (long long)leading + rows)) && (size_t)at % size == 0;
  };
  CHECKED(holds(A, Atype, lda, transa ? m : k, transa ? k : m, strideA, batch) && holds(B, Btype, ldb, transb ? k : n, transb ? n : k, strideB, batch) &&
          holds(C, Ctype, ldc, n, m, strideC, batch), "a matrix that reaches beyond the device's memory");
  const double a = is_double ? *(const double*)alpha : *(const float*)alpha, b = is_double ? *(const double*)beta : *(const float*)beta;
  return device::enqueue((device::Stream*)h->stream, "product", [=] {
    if (!device::settings.computes) return;
    std::vector<double> x((size_t)m * k), y((size_t)n * k);  // op(A) by rows, op(B) by columns
    for (int i = 0; i < batch; i++) {
      for (int row = 0; row < m; row++)
        for (int l = 0; l < k; l++)
          x[(size_t)row * k + l] = read(A, Atype, i * strideA + (transa ? row * (long long)lda + l : l * (long long)lda + row));
      for (int column = 0; column < n; column++)
        for (int l = 0; l < k; l++)
          y[(size_t)column * k + l] = read(B, Btype, i * strideB + (transb ? l * (long long)ldb + column : column * (long long)ldb + l));
      for (int column = 0; column < n; column++)
        for (int row = 0; row < m; row++) {
          const double *p = &x[(size_t)row * k], *q = &y[(size_t)column * k];
          double sum = 0;
          for (int l = 0; l < k; l++) sum += p[l] * q[l];
          const long long at = i * strideC + column * (long long)ldc + row;
          write(C, Ctype, at, a * sum + (b == 0 ? 0 : b * read(C, Ctype, at)));
        }
    }
  }) ? 13 : 0;
}
extern "C" int cublasGemmEx(Handle* h, int transa, int transb, int m, int n, int k, const void* alpha, const void* A, int Atype,
                            int lda, const void* B, int Btype, int ldb, const void* beta, void* C, int Ctype, int ldc, int compute,
                            int algo) {
  return cublasGemmStridedBatchedEx(h, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0,
                                    1, compute, algo);
}
