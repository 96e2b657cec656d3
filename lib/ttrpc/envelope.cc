#include "lib/ttrpc/envelope.h"

#include "lib/base/status_macros.h"
#include "lib/ttrpc/wire.h"

namespace bulkhead::ttrpc {
namespace {
constexpr int kCodeMax = 16;
}  // namespace

std::string Encode(const Request& request) {
  WireWriter writer;
  writer.Str(1, request.service)
      .Str(2, request.method)
      .Str(3, request.payload)
      .Int(4, request.timeout_nano);
  for (const auto& [key, value] : request.metadata) {
    writer.Message(5, WireWriter().Str(1, key).Str(2, value).Take());
  }
  return writer.Take();
}

std::string Encode(const Response& response) {
  WireWriter writer;
  if (response.code != 0) {
    writer.Message(
        1, WireWriter().Int(1, response.code).Str(2, response.message).Take());
  }
  return writer.Str(2, response.payload).Take();
}

bool Decode(const std::string& bytes, Request* out) {
  WireReader reader(bytes);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        out->service = reader.str();
        break;
      case 2:
        out->method = reader.str();
        break;
      case 3:
        out->payload = reader.str();
        break;
      case 4:
        out->timeout_nano = static_cast<int64_t>(reader.value());
        break;
      case 5: {
        WireReader pair(reader.bytes());
        std::pair<std::string, std::string> entry;
        while (pair.Next()) {
          if (pair.field() == 1) entry.first = pair.str();
          if (pair.field() == 2) entry.second = pair.str();
        }
        if (!pair.ok()) return false;
        out->metadata.push_back(std::move(entry));
        break;
      }
      default:
        break;
    }
  }
  return reader.ok();
}

bool Decode(const std::string& bytes, Response* out) {
  WireReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) {
      WireReader status(reader.bytes());
      while (status.Next()) {
        if (status.field() == 1) {
          out->code = static_cast<int32_t>(status.value());
        } else if (status.field() == 2) {
          out->message = status.str();
        }
      }
      if (!status.ok()) return false;
    } else if (reader.field() == 2) {
      out->payload = reader.str();
    }
  }
  return reader.ok();
}

absl::Status StatusOf(const Response& response) {
  if (response.code == 0) return absl::OkStatus();
  const bool known = response.code > 0 && response.code <= kCodeMax;
  return absl::Status(known ? static_cast<absl::StatusCode>(response.code)
                            : absl::StatusCode::kUnknown,
                      response.message);
}

Response ResponseOf(const absl::Status& error) {
  return Response{static_cast<int32_t>(error.code()), MessageOf(error), ""};
}

}  // namespace bulkhead::ttrpc
