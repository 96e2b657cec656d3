// The copying of streams, with readers and writers that are slow, stop, or go
// away, all on one loop and so in a known order.
#include "services/runtime/shim/sinks.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "lib/os/fd.h"
#include "services/runtime/shim/loop.h"
#include "services/runtime/shim/stdio.h"

namespace bulkhead::shim {
namespace {

constexpr int64_t kTickMs = 2;
constexpr int64_t kGuardMs = 100;
constexpr int kGuardTicksMax = 600;

// Bytes in which no part is like another.
std::string Pattern(size_t size) {
  std::string out(size, '\0');
  uint32_t state = 1;
  for (char& byte : out) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<char>(state >> 24);
  }
  return out;
}

class StreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/bh-XXXXXX";
    dir_ = ::mkdtemp(path);
    fifo_ = dir_ + "/fifo";
    ASSERT_EQ(::mkfifo(fifo_.c_str(), 0700), 0);
    ASSERT_TRUE(loop_.Init().ok());
    // Counted, so that time in which nothing of this machine ran is none.
    Every(kGuardMs, [this] {
      if (++guard_ticks_ < kGuardTicksMax) return true;
      ADD_FAILURE() << "it never ended";
      loop_.Stop();
      return false;
    });
  }
  void TearDown() override { (void)os::RemoveAll(dir_); }

  os::UniqueFd OpenFifo(int flags) {
    return os::Open(fifo_, flags | O_NONBLOCK).value();
  }

  // Writes `bytes` to `fd` as it takes them, then closes it.
  void Feed(os::UniqueFd fd, std::string bytes, std::function<void()> done) {
    auto source = std::make_shared<os::UniqueFd>(std::move(fd));
    auto left = std::make_shared<std::string>(std::move(bytes));
    Every(kTickMs, [source, left, done = std::move(done)] {
      while (!left->empty()) {
        const ssize_t size = ::write(source->get(), left->data(), left->size());
        if (size <= 0) return true;
        left->erase(0, static_cast<size_t>(size));
      }
      source->Reset();
      if (done) done();
      return false;
    });
  }

  // Calls `tick` until it returns false.
  void Every(int64_t ms, std::function<bool()> tick) {
    loop_.After(ms, [this, ms, tick = std::move(tick)] {
      if (tick()) Every(ms, tick);
    });
  }

  // Reads at most `size` bytes into got_; false at the end.
  bool Take(const os::UniqueFd& fd, size_t size) {
    std::string buffer(size, '\0');
    const ssize_t count = ::read(fd.get(), buffer.data(), size);
    if (count > 0) got_.append(buffer, 0, static_cast<size_t>(count));
    return count != 0;
  }

  std::string dir_;
  std::string fifo_;
  Loop loop_;
  int guard_ticks_ = 0;
  std::string got_;
};

// A process whose output goes to the FIFO; this test writes it.
class OutputTest : public StreamTest {
 protected:
  void SetUp() override {
    StreamTest::SetUp();
    StdioSpec spec;
    spec.out = fifo_;
    io_ = std::make_unique<ProcessIo>(&loop_, spec);
    io_->Open([](const absl::Status& status) { ASSERT_TRUE(status.ok()); });
    container_ = os::Dup(io_->child_stdout()).value();
    (void)::fcntl(container_.get(), F_SETFL, O_WRONLY | O_NONBLOCK);
    io_->CloseChildEnds();
    ASSERT_TRUE(io_->RuntimeDone().ok());
  }

  // The container writes `bytes` and ends; told_at_ is how much was read by
  // then, and told_ms_ how long that took.
  void WriteAndEnd(const std::string& bytes) {
    Feed(std::move(container_), bytes, [this] {
      const int64_t start = NowMs();
      io_->WhenRead([this, start] {
        told_ = true;
        told_at_ = got_.size();
        told_ms_ = NowMs() - start;
        io_->WhenDrained(10000, [this] {
          io_ = nullptr;
          if (stop_when_drained_) loop_.Stop();
        });
      });
    });
  }

  static int64_t NowMs() {
    timespec now{};
    ::clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
  }

  std::unique_ptr<ProcessIo> io_;
  os::UniqueFd container_;
  bool stop_when_drained_ = false;
  bool told_ = false;
  size_t told_at_ = 0;
  int64_t told_ms_ = 0;
};

TEST_F(OutputTest, ASlowReaderHasEverythingBeforeTheEndIsTold) {
  const std::string bytes = Pattern(300000);
  const os::UniqueFd reader = OpenFifo(O_RDONLY);
  WriteAndEnd(bytes);
  Every(kTickMs, [&] {
    // Zero is the end, but not while the shim has not opened its side yet.
    const bool ended = !Take(reader, 1500) && !got_.empty();
    if (ended && told_) loop_.Stop();
    return !ended || !told_;
  });
  loop_.Run();
  EXPECT_TRUE(got_ == bytes) << got_.size();
  EXPECT_EQ(told_at_, bytes.size());
}

class OutputSizeTest : public OutputTest,
                       public ::testing::WithParamInterface<size_t> {};

TEST_P(OutputSizeTest, AReaderThatClosesAtTheEndHasEverything) {
  // As ctr 1.6 does, which reads until it hears of the exit.
  const std::string bytes = Pattern(GetParam());
  const os::UniqueFd reader = OpenFifo(O_RDONLY);
  WriteAndEnd(bytes);
  int ticks = 0;
  Every(kTickMs, [&] {
    if (told_) {
      loop_.Stop();
      return false;
    }
    // Slower than what writes.
    if (++ticks % 10 == 0) (void)Take(reader, 32768);
    return true;
  });
  loop_.Run();
  EXPECT_TRUE(got_ == bytes) << got_.size();
}

INSTANTIATE_TEST_SUITE_P(Sizes, OutputSizeTest,
                         ::testing::Values(1, 4096, 32768, 65536, 98304, 131072,
                                           1 << 20));

TEST_F(OutputTest, AReaderThatStopsDelaysTheEndOnlySoLong) {
  const std::string bytes = Pattern(50000);
  const os::UniqueFd reader = OpenFifo(O_RDONLY);
  WriteAndEnd(bytes);
  Every(kTickMs, [&] {
    if (!told_) return true;
    loop_.Stop();
    return false;
  });
  loop_.Run();
  EXPECT_EQ(told_at_, 0u);
  EXPECT_GE(told_ms_, kStalledMs);
  while (Take(reader, 4096)) {
  }
  EXPECT_TRUE(got_ == bytes) << got_.size();
}

TEST_F(OutputTest, ReadersThatAreGoneDelayNothing) {
  // The first reader goes away; what it leaves is for the next.
  const std::string bytes = Pattern(200000);
  auto first = std::make_shared<os::UniqueFd>(OpenFifo(O_RDONLY));
  WriteAndEnd(bytes.substr(0, 100000));
  Every(kTickMs, [&, first] {
    (void)Take(*first, 10);
    if (got_.empty()) return true;
    first->Reset();
    Every(kTickMs, [&] {
      if (!told_) return true;
      loop_.Stop();
      return false;
    });
    return false;
  });
  loop_.Run();
  EXPECT_LT(told_ms_, kStalledMs);
  EXPECT_LT(got_.size(), 11u);
}

TEST_F(OutputTest, AReaderIsNotKeptWaitingForItsOpening) {
  // One whose open() is interrupted all the time would else never be seen.
  struct sigaction action {};
  action.sa_handler = [](int) {};
  ASSERT_EQ(::sigaction(SIGALRM, &action, nullptr), 0);
  (void)::alarm(2);
  const int fd = ::open(fifo_.c_str(), O_RDONLY | O_CLOEXEC);
  (void)::alarm(0);
  ASSERT_GE(fd, 0) << "no writer";
  const os::UniqueFd reader(fd);
  (void)::fcntl(fd, F_SETFL, O_RDONLY | O_NONBLOCK);
  const std::string bytes = Pattern(300000);
  WriteAndEnd(bytes);
  Every(kTickMs, [&] {
    if (Take(reader, 5000)) return true;
    loop_.Stop();
    return false;
  });
  loop_.Run();
  EXPECT_TRUE(got_ == bytes) << got_.size();
}

// Copies for a log that a client may listen to: FifoMode::kTee.
class TeeTest : public StreamTest {
 protected:
  // Once the sink takes bytes.
  void WhenReady(FifoSink* sink, std::function<void()> call) {
    Every(kTickMs, [sink, call = std::move(call)] {
      if (sink->blocked()) return true;
      call();
      return false;
    });
  }
};

TEST_F(TeeTest, ReadersComeAndGo) {
  FifoSink sink(&loop_, fifo_, FifoMode::kTee);
  EXPECT_TRUE(sink.blocked());
  EXPECT_FALSE(sink.HasReader());
  os::UniqueFd reader = OpenFifo(O_RDONLY);
  EXPECT_TRUE(sink.HasReader());
  WhenReady(&sink, [&] {
    sink.Write("one");
    (void)Take(reader, 100);
    reader.Reset();
    EXPECT_FALSE(sink.HasReader());
    sink.Write("nobody hears this");
    EXPECT_FALSE(sink.blocked());
    reader = OpenFifo(O_RDONLY);
    sink.Write("two");
    (void)Take(reader, 100);
    loop_.Stop();
  });
  loop_.Run();
  EXPECT_EQ(got_, "onetwo");
}

TEST_F(TeeTest, AReaderThatGoesWhileItIsWaitedForLeavesTheNextALive) {
  FifoSink sink(&loop_, fifo_, FifoMode::kTee);
  os::UniqueFd reader = OpenFifo(O_RDONLY);
  WhenReady(&sink, [&] {
    sink.Write(Pattern(1 << 20));
    EXPECT_TRUE(sink.blocked());
    reader.Reset();
    WhenReady(&sink, [&] {
      reader = OpenFifo(O_RDONLY);
      sink.Write("live");
      (void)Take(reader, 100);
      loop_.Stop();
    });
  });
  loop_.Run();
  EXPECT_EQ(got_, "live");
}

TEST_F(TeeTest, NobodyReadsAndTheContainerGoesOn) {
  FifoSink sink(&loop_, fifo_, FifoMode::kTee);
  WhenReady(&sink, [&] {
    for (int i = 0; i < 100; ++i) sink.Write(Pattern(kCopySizeBytes));
    EXPECT_FALSE(sink.blocked());
    loop_.Stop();
  });
  loop_.Run();
}

TEST_F(OutputTest, NobodyEverReads) {
  WriteAndEnd(Pattern(1000));
  stop_when_drained_ = true;
  const int64_t start = NowMs();
  loop_.Run();
  EXPECT_TRUE(told_);
  EXPECT_LT(told_ms_, kStalledMs);
  EXPECT_LT(NowMs() - start, 9000) << "Delete need not wait all its time";
}

TEST_F(OutputTest, ANextReaderGoesOnWhereTheFirstEnded) {
  const std::string bytes = Pattern(300000);
  auto reader = std::make_shared<os::UniqueFd>(OpenFifo(O_RDONLY));
  WriteAndEnd(bytes);
  int ticks = 0;
  Every(kTickMs, [&, reader] {
    const bool more = Take(*reader, 5000);
    if (!more && !got_.empty()) {
      loop_.Stop();
      return false;
    }
    if (++ticks % 7 == 0) {
      reader->Reset();
      *reader = OpenFifo(O_RDONLY);
    }
    return true;
  });
  loop_.Run();
  EXPECT_TRUE(got_ == bytes) << got_.size();
}

TEST_F(OutputTest, WhatIsWrittenLaterIsNotWaitedFor) {
  // A process in the background goes on with the same output.
  os::UniqueFd other = os::Dup(container_.get()).value();
  const os::UniqueFd reader = OpenFifo(O_RDONLY);
  WriteAndEnd(Pattern(1000));
  Every(kTickMs, [&] {
    (void)!::write(other.get(), "more and more and more and more", 31);
    (void)Take(reader, 20);
    if (!told_) return true;
    loop_.Stop();
    return false;
  });
  loop_.Run();
  EXPECT_GE(told_at_, 1000u);
  EXPECT_LT(told_ms_, kReadMs / 2);
}

using InputTest = StreamTest;

struct Closing {
  size_t after;  // So many of the bytes the daemon says that there is no more.
  size_t chunk;  // The container reads so many at a time.
};

class InputClosingTest : public StreamTest,
                         public ::testing::WithParamInterface<Closing> {};

TEST_P(InputClosingTest, EveryByteArrivesWheneverStdinIsClosed) {
  const std::string bytes = Pattern(1 << 20);
  auto copier = InputCopier::Open(&loop_, fifo_).value();
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  const os::UniqueFd container(fds[0]);
  copier->Start(os::UniqueFd(fds[1]), nullptr);
  Feed(OpenFifo(O_WRONLY), bytes, nullptr);
  Every(kTickMs, [&] {
    if (got_.size() >= GetParam().after) copier->CloseWriter();
    const bool more = Take(container, GetParam().chunk);
    if (!more) loop_.Stop();
    return more;
  });
  loop_.Run();
  EXPECT_EQ(got_.size(), bytes.size());
  EXPECT_TRUE(got_ == bytes);
}

INSTANTIATE_TEST_SUITE_P(Times, InputClosingTest,
                         ::testing::Values(Closing{0, 4095}, Closing{0, 200000},
                                           Closing{1 << 19, 32768},
                                           Closing{1 << 20, 32768},
                                           Closing{1 << 20, 4095}));

TEST_F(InputTest, ClientsMayComeAndGoUntilStdinIsClosed) {
  const std::string bytes = Pattern(100000);
  auto copier = InputCopier::Open(&loop_, fifo_).value();
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  const os::UniqueFd container(fds[0]);
  copier->Start(os::UniqueFd(fds[1]), nullptr);
  Feed(OpenFifo(O_WRONLY), bytes.substr(0, 40000), [&] {
    loop_.After(20, [&] {
      Feed(OpenFifo(O_WRONLY), bytes.substr(40000),
           [&] { copier->CloseWriter(); });
    });
  });
  Every(kTickMs, [&] {
    const bool more = Take(container, 3000);
    if (!more) loop_.Stop();
    return more;
  });
  loop_.Run();
  EXPECT_TRUE(got_ == bytes) << got_.size();
}

TEST_F(InputTest, AContainerThatReadsNoMoreEndsTheCopying) {
  auto copier = InputCopier::Open(&loop_, fifo_).value();
  int fds[2];
  ASSERT_EQ(::pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
  os::UniqueFd container(fds[0]);
  copier->Start(os::UniqueFd(fds[1]), [&] { loop_.Stop(); });
  const os::UniqueFd client = OpenFifo(O_WRONLY);
  container.Reset();
  ASSERT_EQ(::write(client.get(), "x", 1), 1);
  loop_.Run();
  EXPECT_EQ(::write(client.get(), "x", 1), -1);  // As of any closed pipe.
}

}  // namespace
}  // namespace bulkhead::shim
