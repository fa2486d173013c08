#pragma once

// The device's side of what EmulatedMachine has for sm_90a: mbarriers, bulk copies, wgmma.
// @source PTX ISA, "mbarrier", "cp.async.bulk", "wgmma", "setmaxnreg"

#include "kernels/cuda/device_machine.cuh"
#include "kernels/cuda/wgmma_ptx_sm90a.cuh"

namespace gantry {

class Sm90Machine : public DeviceMachine {
 public:
  __device__ static uint32_t shared_address(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }

  __device__ static void init_barrier(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                 "r"(count)
                 : "memory");
  }
  __device__ static void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __device__ static void arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
                 : "memory");
  }
  __device__ static void arrive_expecting(uint64_t* barrier, uint32_t bytes) {
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
        "r"(bytes)
        : "memory");
  }
  __device__ static void wait_barrier(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra ended;\n"
        "bra again;\n"
        "ended:\n"
        "}\n" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
  }
  __device__ static void copy_bulk(void* shared, const void* source, uint32_t bytes,
                                   uint64_t* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(shared)),
        "l"(source), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
  }

  __device__ static void publish_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }

  template <int kRegisters>
  __device__ static void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
  template <int kRegisters>
  __device__ static void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }

  __device__ static void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
  template <WgmmaType kType, int kRegisters>
  __device__ static void wgmma(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t b,
                               bool accumulate) {
    wgmma_async<kType>(d, a, b, accumulate ? 1 : 0);
  }
  __device__ static void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  template <int kNewest>
  __device__ static void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
  }
};

}  // namespace gantry
