#include "services/snapshotter/apply.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/digest/digest.h"
#include "lib/log/log.h"
#include "lib/os/capability.h"
#include "lib/os/memory.h"
#include "lib/os/seccomp.h"
#include "lib/os/volume.h"
#include "services/snapshotter/file_filler.h"
#include "services/snapshotter/inflate.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr std::chrono::milliseconds kEarlySyncLook{20};

// Buffers of uncompressed bytes between the threads.
class Pipe : public ByteStream {
 public:
  struct Buffer {
    std::vector<char> data;
    size_t size = 0;
  };

  // Writer: an empty buffer; nullopt-like false once the reader has stopped.
  bool Get(Buffer* out) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return stopped_ || !free_.empty() || made_ < kPipeBuffers;
    });
    if (stopped_) return false;
    if (free_.empty()) {
      ++made_;
      out->data.resize(kPipeBufferBytes);
    } else {
      *out = std::move(free_.front());
      free_.pop_front();
    }
    return true;
  }
  void Put(Buffer buffer) {
    std::lock_guard lock(mutex_);
    full_.push_back(std::move(buffer));
    changed_.notify_all();
  }
  void End(absl::Status status) {
    std::lock_guard lock(mutex_);
    ended_ = true;
    status_ = std::move(status);
    changed_.notify_all();
  }

  // Reader: no more wanted.
  void Stop() {
    std::lock_guard lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }
  absl::StatusOr<absl::string_view> Fill() override {
    while (current_ == nullptr || at_ == current_->size) {
      current_ = nullptr;
      at_ = 0;
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return ended_ || !full_.empty(); });
      if (full_.empty()) {
        if (!status_.ok()) return status_;
        return absl::string_view();
      }
      current_ =
          std::shared_ptr<Buffer>(new Buffer(std::move(full_.front())),
                                  [this](Buffer* buffer) { GiveBack(buffer); });
      full_.pop_front();
    }
    return absl::string_view(current_->data.data() + at_, current_->size - at_);
  }
  void Consume(size_t size_bytes) override { at_ += size_bytes; }
  std::shared_ptr<void> Hold() override { return current_; }

 private:
  // Any thread: nobody holds it any more.
  void GiveBack(Buffer* buffer) {
    {
      std::lock_guard lock(mutex_);
      free_.push_back(std::move(*buffer));
      changed_.notify_all();
    }
    delete buffer;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Buffer> free_, full_;
  int made_ = 0;
  bool ended_ = false;
  bool stopped_ = false;
  absl::Status status_;
  // Last, as it goes back into the others.
  std::shared_ptr<Buffer> current_;  // The reader's own.
  size_t at_ = 0;
};

// The value of option `key=`, if there.
bool OptionValue(const os::MountSpec& mount, const std::string& key,
                 std::string* value) {
  const std::string prefix = absl::StrCat(key, "=");
  bool found = false;
  for (const std::string& option : mount.options) {
    if (absl::StartsWith(option, prefix)) {
      *value = option.substr(prefix.size());
      found = true;
    }
  }
  return found;
}

bool IsReadOnly(const os::MountSpec& mount) {
  bool read_only = false;
  for (const std::string& option : mount.options) {
    if (option == "ro") read_only = true;
    if (option == "rw") read_only = false;
  }
  return read_only;
}

std::vector<std::string> SplitLowers(const std::string& value) {
  std::vector<std::string> out;
  std::string part;
  for (size_t i = 0; i <= value.size(); ++i) {
    if (i == value.size() || value[i] == ':') {
      if (!part.empty()) out.push_back(part);
      part.clear();
      continue;
    }
    if (value[i] == '\\' && i + 1 < value.size()) ++i;
    part += value[i];
  }
  return out;
}

// syncfs(2), by one descriptor from before the first write: what fails to be
// written meanwhile, by whomever, is told once to each open descriptor.
class FsSync {
 public:
  static absl::StatusOr<FsSync> Open(const std::string& root) {
    FsSync sync;
    ASSIGN_OR_RETURN(sync.fd_, os::Open(root, O_RDONLY | O_DIRECTORY));
    return sync;
  }
  absl::Status Sync() const {
    if (::syncfs(fd_.get()) != 0) return os::ErrnoStatus(errno, "syncfs");
    return absl::OkStatus();
  }
  // The same, unless another layer is at it just now.
  absl::Status SyncEarly() const {
    static std::mutex one;
    const std::unique_lock lock(one, std::try_to_lock);
    return lock.owns_lock() ? Sync() : absl::OkStatus();
  }

 private:
  os::UniqueFd fd_;
};

}  // namespace

FdSource::FdSource(os::UniqueFd fd, int64_t readable_bytes, bool finished)
    : fd_(std::move(fd)),
      readable_bytes_(readable_bytes),
      finished_(finished) {}

absl::StatusOr<size_t> FdSource::Read(char* out, size_t size_bytes) {
  int64_t available = 0;
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] {
      return !failed_.ok() || finished_ || readable_bytes_ > at_bytes_;
    });
    if (!failed_.ok()) return failed_;
    available = readable_bytes_ - at_bytes_;
  }
  if (available <= 0) return 0;
  const size_t want =
      std::min<int64_t>(available, static_cast<int64_t>(size_bytes));
  ASSIGN_OR_RETURN(const size_t n,
                   os::PReadFull(fd_.get(), out, want, at_bytes_));
  if (n < want) {
    return absl::DataLossError("the layer's file is shorter than announced");
  }
  at_bytes_ += n;
  return n;
}

absl::Status FdSource::Advance(int64_t offset_bytes) {
  std::lock_guard lock(mutex_);
  if (finished_ || offset_bytes < readable_bytes_) {
    return absl::InvalidArgumentError("advance goes backwards");
  }
  readable_bytes_ = offset_bytes;
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status FdSource::Finish(int64_t size_bytes) {
  std::lock_guard lock(mutex_);
  if (finished_ || size_bytes < readable_bytes_) {
    return absl::InvalidArgumentError("finish goes backwards");
  }
  readable_bytes_ = size_bytes;
  finished_ = true;
  changed_.notify_all();
  return absl::OkStatus();
}

void FdSource::Fail(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  if (failed_.ok()) failed_ = status;
  changed_.notify_all();
}

absl::Status ConfineWorker(Worker worker) {
  if (worker == Worker::kInflate) {
    RETURN_IF_ERROR(os::KeepOnlyCapabilities({}));
    return os::AllowOnly({SYS_pread64, SYS_read, SYS_fstat});
  }
  if (worker == Worker::kFill) {
    RETURN_IF_ERROR(
        os::KeepOnlyCapabilities({CAP_CHOWN, CAP_FOWNER, CAP_FSETID}));
    return os::AllowOnly({SYS_pwrite64, SYS_fchown, SYS_fchmod, SYS_utimensat,
                          SYS_fstat, SYS_newfstatat, SYS_sync_file_range,
                          SYS_geteuid, SYS_getegid});
  }
  // SYS_ADMIN is what trusted.* attributes take; the filter leaves it no other
  // use.
  RETURN_IF_ERROR(os::KeepOnlyCapabilities({CAP_CHOWN, CAP_DAC_OVERRIDE,
                                            CAP_FOWNER, CAP_FSETID, CAP_MKNOD,
                                            CAP_SETFCAP, CAP_SYS_ADMIN}));
  return os::AllowOnly({
#if defined(__x86_64__)
    SYS_open, SYS_chmod,  // Other machines have the *at() forms only.
#endif
        SYS_openat, SYS_openat2, SYS_mkdirat, SYS_mknodat, SYS_symlinkat,
        SYS_linkat, SYS_unlinkat, SYS_fchown, SYS_fchownat, SYS_fchmod,
        SYS_fchmodat, SYS_fsetxattr, SYS_lsetxattr, SYS_fgetxattr,
        SYS_lgetxattr, SYS_flistxattr, SYS_llistxattr, SYS_utimensat,
        SYS_ftruncate, SYS_pwrite64, SYS_writev, SYS_lseek, SYS_newfstatat,
        SYS_fstat, SYS_getdents64, SYS_readlinkat, SYS_fcntl, SYS_dup, SYS_read,
        SYS_pread64, SYS_statx, SYS_fallocate, SYS_sync_file_range, SYS_geteuid,
        SYS_getegid,
  });
}

absl::StatusOr<Unpacked> UnpackLayer(LayerSource& source,
                                     const std::string& media_type,
                                     const std::string& root,
                                     const ExtractOptions& wanted,
                                     LayerSink* sink, const EarlySync& early) {
  ASSIGN_OR_RETURN(const LayerEncoding encoding, EncodingOf(media_type));
  Pipe pipe;
  Unpacked unpacked;
  const std::unique_ptr<Inflater> inflater =
      NewInflater(source, encoding.sniff);
  ExtractOptions options = wanted;
  // Asked by the other thread, when the inflating one is through.
  options.is_stargz = [&inflater] { return inflater->is_stargz(); };
  std::thread inflating([&] {
    absl::Status status;
    if (source.MayBeConfined()) status = ConfineWorker(Worker::kInflate);
    Hasher hasher;
    Pipe::Buffer buffer;
    while (status.ok() && pipe.Get(&buffer)) {
      absl::StatusOr<size_t> n =
          inflater->Read(buffer.data.data(), buffer.data.size());
      if (!n.ok()) status = n.status();
      if (!n.ok() || *n == 0) break;
      hasher.Update(buffer.data.data(), *n);
      if (hasher.size_bytes() > options.bytes_max) {
        status = absl::ResourceExhaustedError(absl::StrCat(
            "the uncompressed layer is larger than ", options.bytes_max,
            " bytes (snapshotter.layer_bytes_max)"));
        break;
      }
      buffer.size = *n;
      pipe.Put(std::move(buffer));
      buffer = Pipe::Buffer{};
    }
    unpacked.size_bytes = hasher.size_bytes();
    unpacked.diff_id = hasher.Finish().str();
    pipe.End(status);
  });
  FileWriter writer;
  std::thread filling;
  if (sink == nullptr) {
    filling = std::thread([&] { writer.Run(ConfineWorker(Worker::kFill)); });
  }
  std::mutex mutex;
  std::condition_variable over;
  bool is_extracted = false;  // Guarded by `mutex`.
  absl::Status status;
  std::thread extracting([&] {
    status = ConfineWorker(Worker::kExtract);
    if (status.ok()) {
      absl::StatusOr<ExtractResult> extracted =
          sink != nullptr ? sink->Take(pipe, options)
                          : ExtractTar(pipe, root, options, &writer);
      status = extracted.status();
      if (status.ok()) unpacked.extracted = *std::move(extracted);
    }
    while (status.ok()) {  // What follows the archive counts for the diff id.
      absl::StatusOr<absl::string_view> rest = pipe.Fill();
      if (!rest.ok()) status = rest.status();
      if (!rest.ok() || rest->empty()) break;
      pipe.Consume(rest->size());
    }
    std::lock_guard lock(mutex);
    is_extracted = true;
    over.notify_one();
  });
  absl::Status synced;
  int64_t synced_bytes = 0;
  {
    std::unique_lock lock(mutex);
    while (!over.wait_for(lock, kEarlySyncLook, [&] { return is_extracted; })) {
      lock.unlock();
      os::ReleaseCodeNowAndThen();
      lock.lock();
      const int64_t written_bytes = writer.written_bytes();
      if (!early.sync || !synced.ok() ||
          written_bytes - synced_bytes < early.bytes) {
        continue;
      }
      synced_bytes = written_bytes;
      lock.unlock();
      synced = early.sync();
      lock.lock();
    }
  }
  extracting.join();
  writer.End();
  if (filling.joinable()) filling.join();
  pipe.Stop();
  if (!status.ok()) source.Cancel();
  inflating.join();
  RETURN_IF_ERROR(status);
  RETURN_IF_ERROR(synced);
  if (inflater->is_stargz() && !unpacked.extracted.stargz_files.empty()) {
    ASSIGN_OR_RETURN(const os::UniqueFd dir,
                     os::Open(root, O_RDONLY | O_DIRECTORY));
    for (const std::string& name : unpacked.extracted.stargz_files) {
      RETURN_IF_ERROR(RemoveAt(dir.get(), name));
    }
    unpacked.extracted.inodes = unpacked.extracted.blocks = -1;
  }
  return unpacked;
}

absl::Status WithTempMount(
    const std::vector<os::MountSpec>& mounts, const std::string& temp_dir,
    const std::function<absl::Status(const std::string& path)>& body) {
  RETURN_IF_ERROR(os::MakeDirs(temp_dir, 0700));
  std::string path = absl::StrCat(temp_dir, "/m-XXXXXX");
  if (::mkdtemp(path.data()) == nullptr) {
    return os::ErrnoStatus(errno, absl::StrCat("mkdtemp ", path));
  }
  std::vector<os::MountSpec> plain = mounts;
  for (os::MountSpec& mount : plain) {
    std::erase_if(mount.options, [](const std::string& option) {
      return option == "volatile" || option == "fsync=volatile";
    });
  }
  absl::Status status = os::MountAll(plain, path);
  if (status.ok()) status = body(path);
  const absl::Status unmounted = os::UnmountTree(path);
  if (unmounted.ok()) {
    ::rmdir(path.c_str());
  } else {
    log::Error("temporary mount stays",
               {{"path", path}, {"error", MessageOf(unmounted)}});
  }
  return status;
}

absl::StatusOr<Unpacked> ApplyLayer(const std::vector<os::MountSpec>& mounts,
                                    LayerSource& source,
                                    const std::string& media_type,
                                    bool parallel, const ApplyLimits& limits,
                                    const ApplyHook& hook,
                                    const SinkChooser& sink_for) {
  if (mounts.empty())
    return absl::InvalidArgumentError("no mounts to apply to");
  if (IsReadOnly(mounts.back())) {
    return absl::InvalidArgumentError("the mount to apply to is read-only");
  }
  ExtractOptions options;
  options.bytes_max = limits.layer_bytes_max;
  options.entries_max = limits.layer_entries_max;
  options.overlay_whiteouts = parallel;
  absl::StatusOr<Unpacked> result = absl::UnknownError("not run");
  auto unpack = [&](const std::string& root) -> absl::Status {
    std::unique_ptr<LayerSink> sink;
    if (sink_for) {
      ASSIGN_OR_RETURN(sink, sink_for(root, &options));
    }
    if (sink != nullptr) {
      result = UnpackLayer(source, media_type, root, options, sink.get());
      RETURN_IF_ERROR(result.status());
      if (hook) RETURN_IF_ERROR(hook(root, *result));
      return sink->Publish();
    }
    ASSIGN_OR_RETURN(const FsSync sync, FsSync::Open(root));
    ASSIGN_OR_RETURN(const bool xfs, os::IsXfs(root));
    options.count = !xfs;
    result = UnpackLayer(
        source, media_type, root, options, nullptr,
        {limits.early_sync_bytes, [&sync] { return sync.SyncEarly(); }});
    RETURN_IF_ERROR(result.status());
    if (hook) RETURN_IF_ERROR(hook(root, *result));
    return sync.Sync();
  };
  absl::Status status;
  std::string upper;
  const os::MountSpec& mount = mounts[0];
  if (mounts.size() == 1 && mount.target.empty() && mount.type == "overlay" &&
      OptionValue(mount, "upperdir", &upper)) {
    std::string lowers;
    if (OptionValue(mount, "lowerdir", &lowers)) {
      options.lower_dirs = SplitLowers(lowers);
    }
    options.overlay_whiteouts = true;
    status = unpack(upper);
  } else if (mounts.size() == 1 && mount.target.empty() &&
             mount.type == "bind") {
    status = unpack(mount.source);
  } else {
    options.overlay_whiteouts = false;
    status = WithTempMount(mounts, limits.temp_dir, unpack);
  }
  RETURN_IF_ERROR(status);
  return result;
}

}  // namespace bulkhead::snapshotter
