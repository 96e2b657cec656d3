#!/bin/sh
# Builds the fuzz targets with clang, libFuzzer and AddressSanitizer: build.sh
# OUT [NAME...]. No Bazel: they need few files, and another compiler.
set -eu
cd "$(dirname "$0")/../.."
out=$1
shift
mkdir -p "$out"
[ $# -gt 0 ] || set -- filters digest reference documents challenge hosts tar erofs inflate \
  dataplane identifier masks labels signature envelope credentials policy
absl=$(sed -n '/^ABSL = /,/^\]/s/.*"\([^"]*\)".*/-l:libabsl_\1.a/p' bazel/system/BUILD)
[ -n "$absl" ] || { echo "no list of Abseil's libraries in bazel/system/BUILD" >&2; exit 1; }
base="lib/os/fd.cc"
for name in "$@"; do
  libs="$absl -lpthread"
  case $name in
    filters) src="lib/filters/filters.cc" libs="-l:libre2.a $libs" ;;
    digest) src="lib/digest/digest.cc" libs="$libs -lcrypto" ;;
    reference) src="lib/oci/reference.cc lib/digest/digest.cc" libs="$libs -lcrypto" ;;
    documents) src="lib/oci/image.cc lib/oci/platform.cc lib/oci/reference.cc lib/digest/digest.cc" libs="$libs -lcrypto" ;;
    challenge) src="services/distribution/challenge.cc" ;;
    # As shipped: Debian's toml++ asserts on input that it then refuses
    # properly ([%ost."x"]); with NDEBUG it only refuses.
    hosts) src="-DNDEBUG services/distribution/hosts.cc lib/log/log.cc $base" ;;
    tar) src="lib/tar/reader.cc" ;;
    erofs) src="services/snapshotter/erofs_layer.cc services/snapshotter/erofs_writer.cc
        services/snapshotter/layer_entries.cc services/snapshotter/tree_root.cc
        lib/tar/reader.cc lib/log/log.cc $base" ;;
    inflate) src="services/snapshotter/inflate.cc" libs="-lisal -lzstd $libs" ;;
    dataplane) src="lib/dataplane/dataplane.cc lib/os/socket.cc $base" ;;
    masks|labels) src="services/metadata/util.cc services/metadata/references.cc"
      libs="-lprotobuf $libs" ;;
    signature|envelope) src="services/distribution/signature.cc services/distribution/notation.cc
        lib/oci/image.cc lib/oci/platform.cc lib/oci/reference.cc lib/digest/digest.cc"
      libs="$libs -lcrypto" ;;
    credentials) src="cli/credentials.cc $base" ;;
    policy) src="-DNDEBUG services/distribution/trust.cc services/distribution/verifier_programs.cc
        services/distribution/signature.cc services/distribution/notation.cc
        lib/oci/image.cc lib/oci/platform.cc lib/oci/reference.cc lib/digest/digest.cc
        lib/config/config.cc lib/log/log.cc lib/os/pidfd.cc $base"
      libs="$libs -lcrypto" ;;
    identifier) src="lib/rpc/context.cc"
      libs="-lgrpc++_unsecure -lgrpc_unsecure -lgpr -lprotobuf $libs" ;;
  esac
  # shellcheck disable=SC2086
  clang++ -std=c++20 -O1 -g1 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DTOML_EXCEPTIONS=0 \
    -iquote . -fsanitize=fuzzer,address -fuse-ld=lld \
    "tests/fuzz/${name}_fuzz.cc" $src -o "$out/$name" -Wl,--start-group $libs -Wl,--end-group
done
