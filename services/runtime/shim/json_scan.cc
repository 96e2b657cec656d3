#include "services/runtime/shim/json_scan.h"

#include <cstdint>
#include <cstdlib>

namespace bulkhead::shim {
namespace {

constexpr char kHex[] = "0123456789abcdef";

void SkipSpace(std::string_view* text) {
  while (!text->empty() && (text->front() == ' ' || text->front() == '\t' ||
                            text->front() == '\n' || text->front() == '\r')) {
    text->remove_prefix(1);
  }
}

bool SkipString(std::string_view* text) {
  if (text->empty() || text->front() != '"') return false;
  for (size_t i = 1; i < text->size(); ++i) {
    if ((*text)[i] == '\\') {
      ++i;
    } else if ((*text)[i] == '"') {
      text->remove_prefix(i + 1);
      return true;
    }
  }
  return false;
}

bool SkipValue(std::string_view* text, int depth) {
  SkipSpace(text);
  if (text->empty() || depth > kJsonDepthMax) return false;
  const char first = text->front();
  if (first == '"') return SkipString(text);
  if (first == '{' || first == '[') {
    const char last = first == '{' ? '}' : ']';
    text->remove_prefix(1);
    SkipSpace(text);
    if (!text->empty() && text->front() == last) {
      text->remove_prefix(1);
      return true;
    }
    for (;;) {
      if (first == '{') {
        SkipSpace(text);
        if (!SkipString(text)) return false;
        SkipSpace(text);
        if (text->empty() || text->front() != ':') return false;
        text->remove_prefix(1);
      }
      if (!SkipValue(text, depth + 1)) return false;
      SkipSpace(text);
      if (text->empty()) return false;
      const char next = text->front();
      text->remove_prefix(1);
      if (next == last) return true;
      if (next != ',') return false;
    }
  }
  size_t size = 0;
  while (size < text->size() &&
         std::string_view("+-.0123456789truefalsnE").find((*text)[size]) !=
             std::string_view::npos) {
    ++size;
  }
  text->remove_prefix(size);
  return size > 0;
}

void AppendUtf8(uint32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xc0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | code >> 12));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else {
    out->push_back(static_cast<char>(0xf0 | code >> 18));
    out->push_back(static_cast<char>(0x80 | (code >> 12 & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  }
}

// Four hex digits at `at`; 0xfffd when they are not.
uint32_t Hex4(std::string_view text, size_t at) {
  if (at + 4 > text.size()) return 0xfffd;
  uint32_t value = 0;
  for (size_t i = at; i < at + 4; ++i) {
    const char c = text[i];
    value <<= 4;
    if (c >= '0' && c <= '9') {
      value |= static_cast<uint32_t>(c - '0');
    } else if ((c | 32) >= 'a' && (c | 32) <= 'f') {
      value |= static_cast<uint32_t>((c | 32) - 'a' + 10);
    } else {
      return 0xfffd;
    }
  }
  return value;
}

// How many bytes the UTF-8 sequence at `at` has; 0 when it is malformed.
size_t Utf8Length(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) -> uint8_t {
    return i < text.size() ? static_cast<uint8_t>(text[i]) : 0;
  };
  const uint8_t first = byte(at);
  size_t length = 0;
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) length = 2;
  if (first >= 0xe0 && first <= 0xef) length = 3;
  if (first >= 0xf0 && first <= 0xf4) length = 4;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(at + i) & 0xc0) != 0x80) return 0;
  }
  if (first == 0xe0 && byte(at + 1) < 0xa0) return 0;
  if (first == 0xed && byte(at + 1) > 0x9f) return 0;
  if (first == 0xf0 && byte(at + 1) < 0x90) return 0;
  if (first == 0xf4 && byte(at + 1) > 0x8f) return 0;
  return length;
}

// Walks the members of an object; `visit` gets the raw key and the raw value.
bool Members(
    std::string_view json,
    const std::function<void(std::string_view, std::string_view)>& visit) {
  SkipSpace(&json);
  if (json.empty() || json.front() != '{') return false;
  json.remove_prefix(1);
  SkipSpace(&json);
  if (!json.empty() && json.front() == '}') return true;
  for (;;) {
    SkipSpace(&json);
    std::string_view key = json;
    if (!SkipString(&json)) return false;
    key = key.substr(0, key.size() - json.size());
    SkipSpace(&json);
    if (json.empty() || json.front() != ':') return false;
    json.remove_prefix(1);
    const std::string_view value = JsonTake(&json);
    if (value.empty()) return false;
    visit(key, value);
    SkipSpace(&json);
    if (json.empty()) return false;
    const char next = json.front();
    json.remove_prefix(1);
    if (next == '}') return true;
    if (next != ',') return false;
  }
}

}  // namespace

std::string_view JsonTake(std::string_view* text) {
  SkipSpace(text);
  const std::string_view before = *text;
  if (!SkipValue(text, 0)) return {};
  return before.substr(0, before.size() - text->size());
}

std::string_view JsonMember(std::string_view json, std::string_view key) {
  std::string_view found;
  (void)Members(json, [&](std::string_view raw_key, std::string_view value) {
    if (JsonString(raw_key) == key) found = value;
  });  // Malformed text after the member does not matter here.
  return found;
}

bool JsonMembers(
    std::string_view json,
    const std::function<void(const std::string&, std::string_view)>& visit) {
  return Members(json, [&](std::string_view raw_key, std::string_view value) {
    visit(JsonString(raw_key), value);
  });
}

bool JsonElements(std::string_view json,
                  const std::function<void(std::string_view)>& visit) {
  SkipSpace(&json);
  if (json.empty() || json.front() != '[') return false;
  json.remove_prefix(1);
  SkipSpace(&json);
  if (!json.empty() && json.front() == ']') return true;
  for (;;) {
    const std::string_view value = JsonTake(&json);
    if (value.empty()) return false;
    visit(value);
    SkipSpace(&json);
    if (json.empty()) return false;
    const char next = json.front();
    json.remove_prefix(1);
    if (next == ']') return true;
    if (next != ',') return false;
  }
}

std::string JsonString(std::string_view raw) {
  if (raw.size() < 2 || raw.front() != '"' || raw.back() != '"') return "";
  raw = raw.substr(1, raw.size() - 2);
  std::string out;
  out.reserve(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] != '\\' || i + 1 == raw.size()) {
      out.push_back(raw[i]);
      continue;
    }
    switch (raw[++i]) {
      case 'b':
        out.push_back('\b');
        break;
      case 'f':
        out.push_back('\f');
        break;
      case 'n':
        out.push_back('\n');
        break;
      case 'r':
        out.push_back('\r');
        break;
      case 't':
        out.push_back('\t');
        break;
      case 'u': {
        uint32_t code = Hex4(raw, i + 1);
        i = i + 4 < raw.size() ? i + 4 : raw.size() - 1;
        if (code >= 0xd800 && code < 0xdc00 && i + 6 < raw.size() &&
            raw[i + 1] == '\\' && raw[i + 2] == 'u') {
          const uint32_t low = Hex4(raw, i + 3);
          if (low >= 0xdc00 && low < 0xe000) {
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
            i += 6;
          }
        }
        if (code >= 0xd800 && code < 0xe000) code = 0xfffd;
        AppendUtf8(code, &out);
        break;
      }
      default:
        out.push_back(raw[i]);
    }
  }
  return out;
}

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (size_t i = 0; i < text.size();) {
    const uint8_t c = static_cast<uint8_t>(text[i]);
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (c < 0x20 || c == 0x7f) {
      out->append("\\u00");
      out->push_back(kHex[c >> 4]);
      out->push_back(kHex[c & 15]);
    } else if (c < 0x80) {
      out->push_back(static_cast<char>(c));
    } else {
      const size_t length = Utf8Length(text, i);
      if (length == 0) {
        out->append("\\ufffd");
        ++i;
        continue;
      }
      out->append(text.substr(i, length));
      i += length;
      continue;
    }
    ++i;
  }
  out->push_back('"');
}

std::string JsonWithMember(std::string_view json, std::string_view key,
                           std::string_view value) {
  const std::string_view old = JsonMember(json, key);
  std::string out;
  if (!old.empty()) {
    const size_t at = static_cast<size_t>(old.data() - json.data());
    out.append(json.substr(0, at)).append(value);
    out.append(json.substr(at + old.size()));
    return out;
  }
  std::string_view rest = json;
  SkipSpace(&rest);
  if (rest.empty() || rest.front() != '{') return "";
  rest.remove_prefix(1);
  out.push_back('{');
  AppendJsonString(key, &out);
  out.append(":").append(value);
  std::string_view peek = rest;
  SkipSpace(&peek);
  if (!peek.empty() && peek.front() != '}') out.push_back(',');
  return out.append(rest);
}

}  // namespace bulkhead::shim
