#!/usr/bin/env bash
# Ranks on real GPUs, for tools/gpu_check.sh: communicators of device memory over the host and over
# NCCL. Needs libnccl.so.2 (or GANTRY_NCCL_LIBRARY), and mpirun for the parts with processes.
#
# One GPU is enough: NCCL runs with one rank, and with two where it takes two processes of different
# NCCL_HOSTID for two hosts. That is nothing that NCCL promises, so its failure is told and no error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

source tools/gpu_check_steps.sh
build="${GANTRY_BUILD_DIR:-build/cuda}"
gpu="${GANTRY_GPU:-cuda:0}"
threads_test="${nccl_test:-$build/tests/parallel/communicator_nccl_test}"  # gpu_check.sh names its own
mpi_test="$build/tests/mp/communicator_mpi_test"
gantry="${gantry:-$build/tools/gantry}"
golden=tests/golden/families/qwen3_next

if [[ -z "${GANTRY_NCCL_LIBRARY:-}" ]]; then
  GANTRY_NCCL_LIBRARY="$(find_library 'libnccl.so.2')"
  [[ -n "$GANTRY_NCCL_LIBRARY" ]] && export GANTRY_NCCL_LIBRARY || unset GANTRY_NCCL_LIBRARY
fi
echo "NCCL: ${GANTRY_NCCL_LIBRARY:-not found}"

begin() { printf '\n==== %s (%d s)\n' "$1" "$SECONDS"; }
status=0

# Small, over the loopback interface, each process a host of its own in NCCL's eyes.
as_hosts='export NCCL_HOSTID=gantry-check-$OMPI_COMM_WORLD_RANK NCCL_SOCKET_IFNAME=lo NCCL_MAX_CTAS=2; exec "$@"'
mpi() {
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout -k 5 40 \
    mpirun --oversubscribe -np 2 sh -c "$as_hosts" sh "$@"
}
may_fail() {
  if "$@"; then
    echo "gpu_check: NCCL takes several ranks on one GPU here"
  else
    echo "gpu_check: NCCL does not take several ranks on one GPU here (allowed: see above for its reason)"
  fi
}

begin "threads for ranks through the host's memory; NCCL with one rank"
# The parameters are (host 1, 2, 3, 5; NCCL 1, 2, 3, 5 ranks); threads are one host to NCCL.
export GANTRY_GPU="$gpu"
run_tests 60 "$threads_test" "--gtest_filter=$rank_tests" || status=$?

if ! command -v mpirun > /dev/null || [[ ! -x "$mpi_test" ]]; then
  echo "gpu_check: no mpirun, or a build without MPI: ranks as processes were not checked"
  exit "$status"
fi
begin "processes for ranks on one GPU, through the host's memory"
GANTRY_TEST_DEVICE="$gpu" mpi "$mpi_test" --gtest_filter='Groups/DeviceCommunicatorTest.*/0' --gtest_brief=1 ||
  status=$?
mpi "$gantry" verify "$golden" --device "$gpu" --device-transport host --ep 2 \
  --reference "$golden/moe_io.safetensors" || status=$?

begin "processes for ranks on one GPU, NCCL with a host id each"
export GANTRY_COLLECTIVE_TIMEOUT=30
GANTRY_TEST_DEVICE="$gpu" may_fail mpi "$mpi_test" --gtest_filter='Groups/DeviceCommunicatorTest.*/1' --gtest_brief=1
may_fail mpi "$gantry" verify "$golden" --device "$gpu" --device-transport nccl --ep 2 \
  --reference "$golden/moe_io.safetensors"
exit "$status"
