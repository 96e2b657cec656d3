"""How shipped programs are linked."""

# Statically, but for the sanitizers' configs (see .bazelrc).
STATIC = select({
    "//bazel/rules:dynamic": [],
    "//conditions:default": ["-static"],
})
