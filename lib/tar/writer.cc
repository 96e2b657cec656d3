#include "lib/tar/writer.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::tar {
namespace {

constexpr size_t kBlockBytes = 512;

void PutOctal(char* field, int digits, uint64_t value) {
  for (int i = digits - 1; i >= 0; --i, value >>= 3) {
    field[i] = static_cast<char>('0' + (value & 7));
  }
}

std::string Block(const Header& h) {
  char b[kBlockBytes] = {};
  std::memcpy(b, h.name.data(), std::min<size_t>(h.name.size(), 100));
  PutOctal(b + 100, 7, h.mode & 07777);
  PutOctal(b + 108, 7, h.uid > 07777777 ? 0 : h.uid);
  PutOctal(b + 116, 7, h.gid > 07777777 ? 0 : h.gid);
  PutOctal(b + 124, 11, h.size > 077777777777 ? 0 : h.size);
  PutOctal(b + 136, 11, std::clamp<int64_t>(h.mtime, 0, 077777777777));
  b[156] = h.type;
  std::memcpy(b + 157, h.link.data(), std::min<size_t>(h.link.size(), 100));
  std::memcpy(b + 257, "ustar\0", 6);
  std::memcpy(b + 263, "00", 2);
  PutOctal(b + 329, 7, h.major);
  PutOctal(b + 337, 7, h.minor);
  std::memset(b + 148, ' ', 8);
  unsigned sum = 0;
  for (const char c : b) sum += static_cast<unsigned char>(c);
  PutOctal(b + 148, 6, sum);
  b[154] = '\0';
  return std::string(b, sizeof(b));
}

std::string PaxRecord(const std::string& key, const std::string& value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t size = rest + 1;
  while (std::to_string(size).size() + rest != size) ++size;
  return absl::StrCat(size, " ", key, "=", value, "\n");
}

bool NeedsPax(const std::string& text) {
  return text.size() > 100 || std::any_of(text.begin(), text.end(), [](char c) {
           return static_cast<unsigned char>(c) >= 0x80;
         });
}

// The last part of a name, without its slash at the end.
std::string LastPart(std::string name) {
  if (!name.empty() && name.back() == '/') name.pop_back();
  return name.substr(name.rfind('/') + 1);
}

}  // namespace

std::string Padding(uint64_t size) {
  return std::string((kBlockBytes - size % kBlockBytes) % kBlockBytes, '\0');
}

absl::Status WriteHeader(const Header& h, const ByteSink& sink) {
  std::string pax;
  if (NeedsPax(h.name)) pax += PaxRecord("path", h.name);
  if (NeedsPax(h.link)) pax += PaxRecord("linkpath", h.link);
  if (h.size > 077777777777) pax += PaxRecord("size", std::to_string(h.size));
  if (h.uid > 07777777) pax += PaxRecord("uid", std::to_string(h.uid));
  if (h.gid > 07777777) pax += PaxRecord("gid", std::to_string(h.gid));
  if (h.mtime < 0) pax += PaxRecord("mtime", std::to_string(h.mtime));
  if (!h.capability.empty()) {
    pax += PaxRecord("SCHILY.xattr.security.capability", h.capability);
  }
  if (!pax.empty()) {
    Header extended;
    extended.name = "PaxHeaders.0/" + LastPart(h.name).substr(0, 80);
    // The field is for people; the record below has the name.
    for (char& c : extended.name) {
      if (static_cast<unsigned char>(c) >= 0x80) c = '_';
    }
    extended.type = 'x';
    extended.size = pax.size();
    RETURN_IF_ERROR(sink(Block(extended)));
    RETURN_IF_ERROR(sink(pax));
    RETURN_IF_ERROR(sink(Padding(pax.size())));
  }
  return sink(Block(h));
}

absl::Status WriteEnd(const ByteSink& sink) {
  return sink(std::string(2 * kBlockBytes, '\0'));
}

}  // namespace bulkhead::tar
