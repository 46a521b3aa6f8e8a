// What cuBLAS promises of the functions that we call, with the prototypes of cublas_api.h: a caller that passes an argument of
// another size, or in another place, gets another product here too.
#include <cstddef>
#include <cstdint>
#include <cstring>

extern "C" float emulator_half_to_float(unsigned short);
extern "C" unsigned short emulator_float_to_half(float);

struct Handle { void* stream; void* workspace; size_t bytes; int math; };
static Handle handles[1024];
static int made;
extern "C" {
int failing = 0;  // the status that every product returns

int cublasCreate_v2(Handle** handle) { *handle = &handles[made++ % 1024]; return 0; }
int cublasSetStream_v2(Handle* h, void* stream) { h->stream = stream; h->workspace = nullptr; h->bytes = 0; return 0; }
int cublasSetWorkspace_v2(Handle* h, void* workspace, size_t bytes) { h->workspace = workspace; h->bytes = bytes; return 0; }
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
  if (!h->workspace || h->bytes < (32u << 20) || h->math != 16 || Atype != Btype || !known || algo != -1) return 7;
  if (Ctype != Atype && Ctype != F32) return 15;
  const double a = is_double ? *(const double*)alpha : *(const float*)alpha, b = is_double ? *(const double*)beta : *(const float*)beta;
  for (int i = 0; i < batch; i++)
    for (int column = 0; column < n; column++)
      for (int row = 0; row < m; row++) {
        double sum = 0;
        for (int l = 0; l < k; l++)
          sum += read(A, Atype, i * strideA + (transa ? row * (long long)lda + l : l * (long long)lda + row)) *
                 read(B, Btype, i * strideB + (transb ? l * (long long)ldb + column : column * (long long)ldb + l));
        const long long at = i * strideC + column * (long long)ldc + row;
        write(C, Ctype, at, a * sum + (b == 0 ? 0 : b * read(C, Ctype, at)));
      }
  return 0;
}
extern "C" int cublasGemmEx(Handle* h, int transa, int transb, int m, int n, int k, const void* alpha, const void* A, int Atype,
                            int lda, const void* B, int Btype, int ldb, const void* beta, void* C, int Ctype, int ldc, int compute,
                            int algo) {
  return cublasGemmStridedBatchedEx(h, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0, beta, C, Ctype, ldc, 0,
                                    1, compute, algo);
}
