#include "services/distribution/byte_stream.h"

#include <algorithm>
#include <cstring>

#include "lib/base/status_macros.h"
#include "proto/containerd/types/transfer/streaming.pb.h"

namespace bulkhead::distribution {
namespace {

namespace transfer = containerd::types::transfer;

constexpr char kDataType[] = "containerd.types.transfer.Data";
constexpr char kWindowType[] = "containerd.types.transfer.WindowUpdate";
constexpr int64_t kCreditMax = int64_t{1} << 40;

// Clients in other languages send "type.googleapis.com/...".
bool IsType(const StreamMessage& message, const char* type) {
  return message.type_url.substr(message.type_url.rfind('/') + 1) == type;
}

class Reader {
 public:
  explicit Reader(std::shared_ptr<Stream> stream)
      : stream_(std::move(stream)) {}

  absl::StatusOr<size_t> Read(char* out, size_t size) {
    while (at_ == data_.size()) {
      if (over_) return size_t{0};
      if (window_ < kStreamWindowBytes) {
        transfer::WindowUpdate update;
        update.set_update(static_cast<int32_t>(kStreamWindowBytes));
        if (!stream_->Send({kWindowType, update.SerializeAsString()})) {
          over_ = true;
          return absl::CancelledError("the client has closed its stream");
        }
        window_ += kStreamWindowBytes;
      }
      StreamMessage message;
      if (!stream_->Receive(&message)) {
        over_ = true;
        return size_t{0};
      }
      transfer::Data data;
      if (!IsType(message, kDataType) || !data.ParseFromString(message.value)) {
        return absl::InvalidArgumentError("a stream message that is no Data");
      }
      window_ -= static_cast<int64_t>(data.data().size());
      if (window_ < 0) {
        return absl::InvalidArgumentError("the stream's window was overrun");
      }
      data_ = std::move(*data.mutable_data());
      at_ = 0;
    }
    const size_t count = std::min(size, data_.size() - at_);
    std::memcpy(out, data_.data() + at_, count);
    at_ += count;
    return count;
  }

 private:
  const std::shared_ptr<Stream> stream_;
  std::string data_;
  size_t at_ = 0;
  int64_t window_ = 0;
  bool over_ = false;
};

class Writer {
 public:
  explicit Writer(std::shared_ptr<Stream> stream)
      : stream_(std::move(stream)) {}

  absl::Status Write(const char* data, size_t size) {
    while (size > 0) {
      while (credit_ <= 0) {
        StreamMessage message;
        if (!stream_->Receive(&message)) {
          return absl::CancelledError("the client has closed its stream");
        }
        transfer::WindowUpdate update;
        if (!IsType(message, kWindowType) ||
            !update.ParseFromString(message.value) || update.update() < 0) {
          return absl::InvalidArgumentError(
              "a stream message that is no WindowUpdate");
        }
        credit_ = std::min(credit_ + update.update(), kCreditMax);
      }
      const size_t count = static_cast<size_t>(std::min<int64_t>(
          credit_, static_cast<int64_t>(std::min(size, kStreamDataBytesMax))));
      transfer::Data message;
      message.set_data(data, count);
      if (!stream_->Send({kDataType, message.SerializeAsString()})) {
        return absl::CancelledError("the client has closed its stream");
      }
      credit_ -= static_cast<int64_t>(count);
      data += count;
      size -= count;
    }
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<Stream> stream_;
  int64_t credit_ = 0;
};

}  // namespace

ByteSource ReadFrom(std::shared_ptr<Stream> stream) {
  auto reader = std::make_shared<Reader>(std::move(stream));
  return [reader](char* out, size_t size) { return reader->Read(out, size); };
}

ByteSink WriteTo(std::shared_ptr<Stream> stream) {
  auto writer = std::make_shared<Writer>(std::move(stream));
  return [writer](const char* data, size_t size) {
    return writer->Write(data, size);
  };
}

}  // namespace bulkhead::distribution
