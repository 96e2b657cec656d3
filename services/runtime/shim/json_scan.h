// A JSON reader for the few values the shim needs: it slices the text and
// builds no tree. Values are checked as far as they are walked.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_JSON_SCAN_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_JSON_SCAN_H_

#include <functional>
#include <string>
#include <string_view>

namespace bulkhead::shim {

constexpr int kJsonDepthMax = 64;

// The member `key` of the object `json`, as its raw text; empty when `json` is
// no object or has no such member. Of repeated keys the last counts.
std::string_view JsonMember(std::string_view json, std::string_view key);

// Calls `visit` with the key and the raw value of each member of the object
// `json`, in order. False when it is no object.
bool JsonMembers(std::string_view json,
                 const std::function<void(const std::string& key,
                                          std::string_view value)>& visit);

// Calls `visit` for each element of the array `json`, in order. False when it
// is no array.
bool JsonElements(std::string_view json,
                  const std::function<void(std::string_view)>& visit);

// The text of the string `raw`, escapes resolved; empty when it is none.
std::string JsonString(std::string_view raw);

// `text` as a JSON string, quotes included. Bytes that are not UTF-8 become
// U+FFFD.
void AppendJsonString(std::string_view text, std::string* out);

// The first value of `*text` as raw text, leaving what follows it; empty when
// there is none. Reads values that stand one after another.
std::string_view JsonTake(std::string_view* text);

// The object `json` with its member `key` set to the raw value `value`, all
// other bytes as they were. Empty when `json` is no object.
std::string JsonWithMember(std::string_view json, std::string_view key,
                           std::string_view value);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_JSON_SCAN_H_
