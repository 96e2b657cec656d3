"""wire_proto: one .proto file as C++, by Debian's protoc and grpc_cpp_plugin."""

WireProtoInfo = provider(fields = ["sources"])

def _wire_proto_gen_impl(ctx):
    src = ctx.file.src
    sources = depset([src], transitive = [d[WireProtoInfo].sources for d in ctx.attr.deps])
    base = src.basename[:-len(".proto")]
    folder = src.dirname[len(ctx.label.package) + 1:] if ctx.label.package else src.dirname
    prefix = (folder + "/" if folder else "") + base
    kinds = [".grpc.pb.h", ".grpc.pb.cc"] if ctx.attr.grpc else [".pb.h", ".pb.cc"]
    outs = [ctx.actions.declare_file(prefix + kind) for kind in kinds]
    args = ctx.actions.args()
    args.add("-I.")
    args.add("-I/usr/include")
    if ctx.attr.grpc:
        args.add("--plugin=protoc-gen-grpc=/usr/bin/grpc_cpp_plugin")
        args.add("--grpc_out=" + ctx.bin_dir.path)
    else:
        args.add("--cpp_out=" + ctx.bin_dir.path)
    args.add(src)

    # protoc 3.21 does not know that some names of the contract are taken in
    # C++: `requires`, a field of introspection's Plugin, becomes requires_();
    # NRI's SCHED_* and CRI's SIG* values are macros of the C library, which are
    # put aside inside the generated header.
    ctx.actions.run_shell(
        command = """
/usr/bin/protoc "$@" || exit 1
for out in {outs}; do
  sed -i 's/\\brequires(/requires_(/g' $out
  case $out in *.pb.h) ;; *) continue ;; esac
  names=$(grep -owE 'SCHED_[A-Z_]+|SIG[A-Z0-9]+' $out | sort -u)
  [ -n "$names" ] || continue
  for name in $names; do
    sed -i -e '/protoc_insertion_point(includes)/a #pragma push_macro("'$name'")' -e '/protoc_insertion_point(includes)/a #undef '$name $out
    echo '#pragma pop_macro("'$name'")' >> $out
  done
done
""".format(outs = " ".join([o.path for o in outs])),
        arguments = [args],
        inputs = sources,
        outputs = outs,
        mnemonic = "WireProto",
    )
    return [
        DefaultInfo(files = depset(outs)),
        WireProtoInfo(sources = sources),
        OutputGroupInfo(
            headers = depset([outs[0]]),
            sources = depset([outs[1]]),
        ),
    ]

_wire_proto_gen = rule(
    implementation = _wire_proto_gen_impl,
    attrs = {
        "src": attr.label(allow_single_file = [".proto"], mandatory = True),
        "deps": attr.label_list(providers = [WireProtoInfo]),
        "grpc": attr.bool(),
    },
)

def _cc(name, gen, deps, visibility):
    native.filegroup(name = name + "_h", srcs = [gen], output_group = "headers")
    native.filegroup(name = name + "_cc", srcs = [gen], output_group = "sources")
    native.cc_library(
        name = name,
        srcs = [name + "_cc"],
        hdrs = [name + "_h"],
        copts = ["-w"],
        visibility = visibility,
        deps = deps,
    )

def wire_proto(name, src, deps = [], grpc = False, visibility = ["//visibility:public"]):
    """Declares :name with the messages and, if `grpc`, :name_grpc with stubs.

    Args:
      name: the target.
      src: the .proto file, below this package.
      deps: names of other wire_proto targets of this package.
      grpc: whether the file has services to be served over gRPC.
      visibility: of both targets.
    """
    _wire_proto_gen(name = name + "_pb", src = src, deps = [d + "_pb" for d in deps])
    _cc(name, name + "_pb", deps + ["//bazel/system:protobuf"], visibility)
    if grpc:
        _wire_proto_gen(name = name + "_stub", src = src, deps = [d + "_pb" for d in deps], grpc = True)
        _cc(name + "_grpc", name + "_stub", [name, "//bazel/system:grpc"], visibility)
