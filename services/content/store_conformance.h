// What every Store must do, over every way to reach one. Instantiate:
//
//   INSTANTIATE_TEST_SUITE_P(Fs, StoreConformance,
//                            ::testing::Values(Backend{"fs", OpenFs}));
#ifndef BULKHEAD_SERVICES_CONTENT_STORE_CONFORMANCE_H_
#define BULKHEAD_SERVICES_CONTENT_STORE_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "lib/testing/temp_dir.h"
#include "services/content/store.h"

namespace bulkhead::content {

struct Backend {
  std::string name;
  // An empty store whose files, if any, live below `root`.
  std::function<std::unique_ptr<Store>(const std::string& root)> open;
  bool keeps_labels = false;
  // containerd 1.6: no other digest can be committed, and a commit beats an
  // abort.
  bool only_sha256 = false;
  bool commit_beats_abort = false;
};

class StoreConformance : public ::testing::TestWithParam<Backend> {
 protected:
  // A writer, or nullptr and a test failure.
  std::unique_ptr<Writer> Begin(const std::string& ref, int64_t total = 0,
                                const Digest& expected = {});
  // Stores `data` under its sha256.
  Digest Put(const std::string& ref, const std::string& data);
  std::string ReadAll(const Digest& digest);

  bulkhead::testing::TempDir dir_;
  std::unique_ptr<Store> store_ = GetParam().open(dir_.path());
};

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_STORE_CONFORMANCE_H_
