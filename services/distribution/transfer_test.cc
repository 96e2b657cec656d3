// Imports and exports on a store in memory.
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/distribution/fake_store.h"
#include "services/distribution/import.h"

namespace bulkhead::distribution {
namespace {

constexpr char kUncompressed[] = "containerd.io/uncompressed";

ByteSource From(const std::string& bytes) {
  auto at = std::make_shared<size_t>(0);
  return [bytes, at](char* out, size_t size) -> absl::StatusOr<size_t> {
    const size_t count = std::min(size, bytes.size() - *at);
    bytes.copy(out, count, *at);
    *at += count;
    return count;
  };
}

ByteSink To(std::string* out) {
  return [out](const char* data, size_t size) {
    out->append(data, size);
    return absl::OkStatus();
  };
}

std::string Inflated(const std::string& bytes) {
  std::string out;
  EXPECT_TRUE(ReadAll(Decompressed(From(bytes)), 1 << 20, &out).ok());
  return out;
}

// What `docker save` writes, with one image of one plain layer.
std::string DockerArchive(const std::string& layer) {
  const std::string config = absl::StrCat(
      R"({"os":"linux","architecture":"amd64","rootfs":{"type":"layers",)"
      R"("diff_ids":[")",
      Digest::Of(layer).str(), R"("]}})");
  std::string out;
  ArchiveWriter tar(To(&out));
  EXPECT_TRUE(tar.File("config.json", config).ok());
  EXPECT_TRUE(tar.File("layer.tar", layer).ok());
  EXPECT_TRUE(tar.File("manifest.json",
                       R"([{"Config":"config.json","RepoTags":)"
                       R"(["ex.org/a/b:1"],"Layers":["layer.tar"]}])")
                  .ok());
  EXPECT_TRUE(tar.Finish().ok());
  return out;
}

struct Transfer {
  Transfer() : progress(nullptr) {
    context.store = &store;
    context.progress = &progress;
    context.stop = &stop;
    context.ns = "tests";
  }
  FakeStore store;
  Progress progress;
  StopFlag stop;
  FetchContext context;

  // The one layer of the image.
  oci::Descriptor LayerOf(const std::string& name) {
    const auto image = store.GetImage(name);
    EXPECT_TRUE(image.ok()) << image.status();
    const auto manifest =
        oci::ParseManifest(store.blobs.at(image->target.digest.str()).bytes);
    EXPECT_TRUE(manifest.ok()) << manifest.status();
    return manifest->layers.at(0);
  }
};

TEST(Gzipped, ComesBackAndIsTheSameEachTime) {
  std::string bytes;
  for (int i = 0; i < 100000; ++i) absl::StrAppend(&bytes, i);
  std::string first;
  std::string second;
  ASSERT_TRUE(ReadAll(Gzipped(From(bytes)), 1 << 20, &first).ok());
  ASSERT_TRUE(ReadAll(Gzipped(From(bytes)), 1 << 20, &second).ok());
  EXPECT_EQ(first, second);
  EXPECT_LT(first.size(), bytes.size());
  EXPECT_EQ(Inflated(first), bytes);
  std::string empty;
  ASSERT_TRUE(ReadAll(Gzipped(From("")), 1 << 20, &empty).ok());
  EXPECT_EQ(Inflated(empty), "");
}

TEST(Import, PlainLayersStayOrAreCompressed) {
  const std::string layer(5000, 'l');
  for (const bool force : {false, true}) {
    Transfer t;
    ImportRequest request;
    request.force_compress = force;
    const absl::Status done =
        Import(t.context, From(DockerArchive(layer)), request, {});
    ASSERT_TRUE(done.ok()) << done;
    const oci::Descriptor got = t.LayerOf("ex.org/a/b:1");
    const FakeStore::Blob& blob = t.store.blobs.at(got.digest.str());
    EXPECT_EQ(got.size_bytes, static_cast<int64_t>(blob.bytes.size()));
    EXPECT_EQ(Inflated(blob.bytes), layer);
    EXPECT_EQ(got.media_type,
              force ? oci::kDockerLayerGzip : oci::kDockerLayer);
    if (!force) continue;
    EXPECT_LT(got.size_bytes, 1000);
    EXPECT_EQ(blob.labels.at(kUncompressed), Digest::Of(layer).str());
    // Once more: the blob is found by what it unpacks to.
    const size_t before = t.store.blobs.size();
    ASSERT_TRUE(
        Import(t.context, From(DockerArchive(layer)), request, {}).ok());
    EXPECT_EQ(t.store.blobs.size(), before);
  }
}

TEST(Import, TakesTheCompressedBlobThatIsThere) {
  Transfer t;
  const std::string layer(5000, 'l');
  std::string packed;
  ASSERT_TRUE(ReadAll(Gzipped(From(layer)), 1 << 20, &packed).ok());
  const std::string digest =
      t.store.Add(packed, {{kUncompressed, Digest::Of(layer).str()}});
  ASSERT_TRUE(
      Import(t.context, From(DockerArchive(layer)), ImportRequest(), {}).ok());
  EXPECT_EQ(t.LayerOf("ex.org/a/b:1").digest.str(), digest);
}

TEST(Export, ByPrefixOfNames) {
  Transfer t;
  ASSERT_TRUE(
      Import(t.context, From(DockerArchive("x")), ImportRequest(), {}).ok());
  ImageRecord image = *t.store.GetImage("ex.org/a/b:1");
  for (const std::string name :
       {"ex.org/a/b:2", "ex.org/a/bc:1", "ex.org/a/b/c:1", "ex.org/z:1"}) {
    image.name = name;
    ASSERT_TRUE(t.store.PutImage(image).ok());
  }
  ExportRequest request;
  request.prefixes = {"ex.org/a/b"};
  request.all_platforms = true;
  std::string archive;
  ASSERT_TRUE(Export(t.context, request, To(&archive)).ok());
  Transfer other;
  ASSERT_TRUE(Import(other.context, From(archive), ImportRequest(), {}).ok());
  std::vector<std::string> names;
  for (const auto& [name, record] : other.store.images) names.push_back(name);
  EXPECT_EQ(names, (std::vector<std::string>{"ex.org/a/b/c:1", "ex.org/a/b:1",
                                             "ex.org/a/b:2"}));
  request.prefixes = {"ex.org/nobody"};
  EXPECT_TRUE(absl::IsNotFound(Export(t.context, request, To(&archive))));
}

}  // namespace
}  // namespace bulkhead::distribution
