"""Hands on Bazel's built-in C++ rules under the names rules_cc gives them."""

cc_library = native.cc_library
cc_binary = native.cc_binary
cc_test = native.cc_test
cc_import = native.cc_import
cc_toolchain = native.cc_toolchain
cc_toolchain_suite = native.cc_toolchain_suite
fdo_profile = native.fdo_profile
fdo_prefetch_hints = native.fdo_prefetch_hints
objc_library = native.objc_library
objc_import = native.objc_import

def cc_flags_supplier(**kwargs):
    native.cc_flags_supplier(**kwargs)

def compiler_flag(**kwargs):
    native.compiler_flag(**kwargs)
