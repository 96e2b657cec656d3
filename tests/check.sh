#!/usr/bin/env bash
# `./dev check`: format, dependency rules and, with --tidy, clang-tidy.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0
fail() { echo "check: $*" >&2; failed=1; }

echo "==> format"
mapfile -t sources < <(git ls-files '*.cc' '*.h')
clang-format --dry-run -Werror "${sources[@]}" || fail "run clang-format -i on the files above"

echo "==> dependency rules"
# Core libraries below the gRPC adapters: no path from any of these to gRPC.
readonly CORES=(
  //lib/os/... //lib/digest/... //lib/log/... //lib/stats/... //lib/config/...
  //lib/filters/... //lib/oci/... //lib/dataplane/... //lib/ttrpc/... //lib/tar/...
  //services/content:fs_store
  //services/runtime/shim:containerd-shim-bulkhead-v1
)
for core in "${CORES[@]}"; do
  path=$(bazel query --noimplicit_deps --noshow_progress \
    "somepath(kind('cc_library|cc_binary', $core), //bazel/system:grpc)" 2>/dev/null) ||
    fail "no such target: $core"
  [ -z "$path" ] || fail "core depends on gRPC:"$'\n'"$path"
done
# Services meet only through proto/ and lib/.
for service in content snapshotter distribution metadata gateway metrics runtime; do
  for other in content snapshotter distribution metadata gateway metrics runtime; do
    [ $service != $other ] || continue
    path=$(bazel query --noimplicit_deps --noshow_progress \
      "somepath(//services/$service:main_lib, kind(cc_library, //services/$other/...))" \
      2>/dev/null) || fail "no target //services/$service:main_lib"
    [ -z "$path" ] || fail "$service depends on $other:"$'\n'"$path"
  done
done
# Raw system calls that other code must not make for itself.
if git grep -nE 'syscall\(' -- 'services/*.cc' 'cli/*.cc' ':!services/runtime/shim' |
    grep -v 'NOLINT(raw-syscall)'; then
  fail "raw system calls belong in lib/os"
fi

echo "==> shell and Python"
for script in dev tests/*.sh; do bash -n "$script" || fail "$script"; done
python3 -m compileall -q tests bench || fail "Python"

if [ "${1:-}" = --tidy ]; then
  echo "==> clang-tidy"
  bin=$(bazel info bazel-bin 2>/dev/null)
  mapfile -t units < <(git ls-files 'lib/*.cc' 'services/*.cc' 'cli/*.cc' | grep -v _test.cc)
  printf '%s\0' "${units[@]}" | xargs -0 -P2 -n1 -I{} clang-tidy --quiet {} -- \
    -std=c++20 -D_GNU_SOURCE -iquote . -iquote "$bin" -DTOML_HEADER_ONLY=1 -DTOML_EXCEPTIONS=0 \
    || fail "clang-tidy"
fi
[ $failed = 0 ] && echo "check: clean"
exit $failed
