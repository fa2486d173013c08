// A libcublas with one function that multiplies, on host memory: what an emulated device has. It is
// strict: anything but what CublasExperts should ask for is refused with a status of its own.
// @source cublas_api.h of CUDA 13: cublasGemmGroupedBatchedEx

#include <cstdint>
#include <cstring>

namespace {

float value_of(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value = 0.0F;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

uint16_t bits_of(float value) {
  uint32_t word = 0;
  std::memcpy(&word, &value, sizeof word);
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

int handle = 0;

}  // namespace

extern "C" {

int cublasCreate_v2(void** made) {
  *made = &handle;
  return 0;
}
int cublasDestroy_v2(void* given) { return given == &handle ? 0 : 1; }
int cublasSetStream_v2(void* given, void* /*stream*/) { return given == &handle ? 0 : 1; }

// C = alpha op(A) op(B) + beta C of column-major matrices, a group at a time.
int cublasGemmGroupedBatchedEx(void* given, const int* transa, const int* transb, const int* m,
                               const int* n, const int* k, const void* alpha,
                               const void* const* a_array, int a_type, const int* lda,
                               const void* const* b_array, int b_type, const int* ldb,
                               const void* beta, void* const* c_array, int c_type, const int* ldc,
                               int group_count, const int* group_size, int compute_type) {
  if (given != &handle) return 1;
  if (a_type != 14 || b_type != 14 || c_type != 14 || compute_type != 68) return 15;
  for (int g = 0; g < group_count; ++g) {
    if (transa[g] != 1 || transb[g] != 0 || group_size[g] != 1) return 7;
    if (lda[g] < k[g] || ldb[g] < k[g] || ldc[g] < m[g]) return 7;
    if (static_cast<const float*>(alpha)[g] != 1.0F || static_cast<const float*>(beta)[g] != 0.0F)
      return 7;
    const auto* a = static_cast<const uint16_t*>(a_array[g]);
    const auto* b = static_cast<const uint16_t*>(b_array[g]);
    auto* c = static_cast<uint16_t*>(c_array[g]);
    for (int64_t col = 0; col < n[g]; ++col) {
      for (int64_t row = 0; row < m[g]; ++row) {
        float sum = 0.0F;
        for (int64_t i = 0; i < k[g]; ++i)
          sum += value_of(a[row * lda[g] + i]) * value_of(b[col * ldb[g] + i]);
        c[col * ldc[g] + row] = bits_of(sum);
      }
    }
  }
  return 0;
}

}  // extern "C"
