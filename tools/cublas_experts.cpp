#include "tools/cublas_experts.h"

#include <dlfcn.h>

#include <array>
#include <cstring>
#include <random>

#include "kernels/base/check.h"

namespace gantry::cli {
namespace {

// The few declarations of cublas_api.h (CUDA 12.5 and later) that are used, so that this compiles
// without its header.
using Handle = void*;
constexpr int kNotTransposed = 0;  // CUBLAS_OP_N
constexpr int kTransposed = 1;     // CUBLAS_OP_T
constexpr int kBF16 = 14;          // CUDA_R_16BF
constexpr int kComputeF32 = 68;    // CUBLAS_COMPUTE_32F
using Create = int (*)(Handle*);
using Destroy = int (*)(Handle);
using SetStream = int (*)(Handle, void*);
using GemmGroupedBatchedEx = int (*)(Handle, const int*, const int*, const int*, const int*,
                                     const int*, const void*, const void* const*, int, const int*,
                                     const void* const*, int, const int*, const void*, void* const*,
                                     int, const int*, int, const int*, int);

void* open_library(const std::string& wanted) {
  const std::vector<std::string> names =
      wanted.empty() ? std::vector<std::string>{"libcublas.so.13", "libcublas.so.12"}
                     : std::vector<std::string>{wanted};
  std::string why;
  for (const std::string& name : names) {
    if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    why += fmt::format("{}{}", why.empty() ? "" : "; ", dlerror());
  }
  fail(ErrorCode::kUnsupported, "cuBLAS: {}", why);
}

template <typename Function>
Function symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  GANTRY_CHECK(found != nullptr, ErrorCode::kUnsupported, "cuBLAS has no {}", name);
  return reinterpret_cast<Function>(found);
}

void check_cublas(int status, const char* call) {
  GANTRY_CHECK(status == 0, ErrorCode::kCuda, "{}: cuBLAS status {}", call, status);
}

// Multiples of 2^-6 have at most 7 bits: exact in bf16.
std::vector<uint16_t> made_up(int64_t count, uint64_t seed) {
  constexpr size_t kPeriod = 65521;  // made once, then repeated
  std::mt19937_64 engine(seed);
  std::vector<uint16_t> period(kPeriod);
  for (uint16_t& bits : period) {
    const float value = static_cast<float>(static_cast<int>(engine() % 129) - 64) / 64.0F;
    uint32_t word = 0;
    static_assert(sizeof word == sizeof value);
    std::memcpy(&word, &value, sizeof word);
    bits = static_cast<uint16_t>(word >> 16);
  }
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = period[i % kPeriod];
  return values;
}

DeviceBuffer upload(const std::shared_ptr<Device>& device, const std::vector<uint16_t>& values) {
  DeviceBuffer buffer(device, values.size() * 2);
  device->copy_in(buffer.data(), values.data(), buffer.size(), nullptr);
  device->synchronize(nullptr);
  return buffer;
}

/// One of the two products of all experts that have rows: C[rows, n] = B[rows, k] A[n, k]^T, which
/// cuBLAS, for whom matrices are column-major, sees as C^T = A B^T with A transposed.
struct Product {
  std::vector<int> m, n, k, lda, ldb, ldc;
  std::vector<const void*> a, b;
  std::vector<void*> c;
  DeviceBuffer device_a, device_b, device_c;  // the pointers, on the device

  void add(const uint16_t* weights, int64_t outputs, int64_t depth, const uint16_t* rows,
           int64_t row_stride, int64_t num_rows, uint16_t* out) {
    m.push_back(static_cast<int>(outputs));
    n.push_back(static_cast<int>(num_rows));
    k.push_back(static_cast<int>(depth));
    lda.push_back(static_cast<int>(depth));
    ldb.push_back(static_cast<int>(row_stride));
    ldc.push_back(static_cast<int>(outputs));
    a.push_back(weights);
    b.push_back(rows);
    c.push_back(out);
  }
  void upload_pointers(const std::shared_ptr<Device>& device) {
    const auto send = [&](const auto& pointers) {
      DeviceBuffer buffer(device, pointers.size() * sizeof(void*));
      device->copy_in(buffer.data(), pointers.data(), buffer.size(), nullptr);
      return buffer;
    };
    device_a = send(a);
    device_b = send(b);
    device_c = send(c);
    device->synchronize(nullptr);
  }
};

}  // namespace

struct CublasExperts::State {
  std::shared_ptr<Device> device;
  CublasExpertsShape shape;
  void* library = nullptr;
  Handle handle = nullptr;
  Destroy destroy = nullptr;
  SetStream set_stream = nullptr;
  GemmGroupedBatchedEx gemm = nullptr;
  DeviceBuffer x, mid, y, w13, w2;
  std::array<Product, 2> products;
};

CublasExperts::CublasExperts(std::shared_ptr<Device> device, const std::string& library,
                             const CublasExpertsShape& shape, uint64_t seed)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.device = std::move(device);
  s.shape = shape;
  s.library = open_library(library);
  const auto create = symbol<Create>(s.library, "cublasCreate_v2");
  s.destroy = symbol<Destroy>(s.library, "cublasDestroy_v2");
  s.set_stream = symbol<SetStream>(s.library, "cublasSetStream_v2");
  s.gemm = symbol<GemmGroupedBatchedEx>(s.library, "cublasGemmGroupedBatchedEx");
  const int64_t middle = shape.parts * shape.intermediate_size;
  s.w13 = upload(s.device, made_up(shape.num_experts * middle * shape.hidden_size, seed));
  s.w2 = upload(s.device,
                made_up(shape.num_experts * shape.hidden_size * shape.intermediate_size, seed + 1));
  s.x = upload(s.device, made_up(shape.max_rows * shape.hidden_size, seed + 2));
  s.mid = DeviceBuffer(s.device, static_cast<size_t>(shape.max_rows * middle) * 2);
  s.y = DeviceBuffer(s.device, static_cast<size_t>(shape.max_rows * shape.hidden_size) * 2);
  check_cublas(create(&s.handle), "cublasCreate");
}

CublasExperts::~CublasExperts() {
  if (state_->handle != nullptr) state_->destroy(state_->handle);
  // The library stays loaded: others may hold what it made.
}

void CublasExperts::set_rows(const std::vector<int64_t>& rows) {
  State& s = *state_;
  const int64_t h = s.shape.hidden_size;
  const int64_t j = s.shape.intermediate_size;
  const int64_t middle = s.shape.parts * j;
  GANTRY_CHECK(static_cast<int64_t>(rows.size()) == s.shape.num_experts,
               ErrorCode::kInvalidArgument, "cuBLAS experts: expected rows of {} experts, found {}",
               s.shape.num_experts, rows.size());
  s.products = {};
  int64_t first = 0;
  for (int64_t e = 0; e < s.shape.num_experts; ++e) {
    const int64_t count = rows[static_cast<size_t>(e)];
    GANTRY_CHECK(count >= 0 && first + count <= s.shape.max_rows, ErrorCode::kInvalidArgument,
                 "cuBLAS experts: more than {} rows", s.shape.max_rows);
    if (count == 0) continue;
    s.products[0].add(s.w13.as<uint16_t>() + e * middle * h, middle, h,
                      s.x.as<uint16_t>() + first * h, h, count,
                      s.mid.as<uint16_t>() + first * middle);
    s.products[1].add(s.w2.as<uint16_t>() + e * h * j, h, j, s.mid.as<uint16_t>() + first * middle,
                      middle, count, s.y.as<uint16_t>() + first * h);
    first += count;
  }
  for (Product& product : s.products)
    product.upload_pointers(s.device);
}

void CublasExperts::run(StreamHandle stream) {
  State& s = *state_;
  check_cublas(s.set_stream(s.handle, stream), "cublasSetStream");
  for (const Product& p : s.products) {
    const size_t groups = p.m.size();
    if (groups == 0) continue;
    const std::vector<int> transposed(groups, kTransposed);
    const std::vector<int> plain(groups, kNotTransposed);
    const std::vector<int> one_each(groups, 1);
    const std::vector<float> alpha(groups, 1.0F);
    const std::vector<float> beta(groups, 0.0F);
    check_cublas(s.gemm(s.handle, transposed.data(), plain.data(), p.m.data(), p.n.data(),
                        p.k.data(), alpha.data(), p.device_a.as<const void*>(), kBF16, p.lda.data(),
                        p.device_b.as<const void*>(), kBF16, p.ldb.data(), beta.data(),
                        p.device_c.as<void*>(), kBF16, p.ldc.data(), static_cast<int>(groups),
                        one_each.data(), kComputeF32),
                 "cublasGemmGroupedBatchedEx");
  }
}

uint16_t* CublasExperts::x() const { return state_->x.as<uint16_t>(); }
const uint16_t* CublasExperts::w13() const { return state_->w13.as<uint16_t>(); }
const uint16_t* CublasExperts::w2() const { return state_->w2.as<uint16_t>(); }
const uint16_t* CublasExperts::y() const { return state_->y.as<uint16_t>(); }

}  // namespace gantry::cli
