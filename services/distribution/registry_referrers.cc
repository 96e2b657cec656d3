// What refers to an image: the OCI 1.1 referrers API and its fallback tag.
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "services/distribution/registry.h"
#include "services/distribution/url.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

// The next page, of `Link: </v2/...>; rel="next"`; else empty.
std::string NextPage(const HttpResponse& response, const std::string& base) {
  const std::string link = response.Header("link");
  const size_t end = link.find('>');
  if (link.empty() || link[0] != '<' || end == std::string::npos ||
      !absl::StrContains(link.substr(end), "rel=\"next\"")) {
    return "";
  }
  return ResolveUrl(base, link.substr(1, end - 1));
}

}  // namespace

absl::StatusOr<std::vector<Descriptor>> Registry::Referrers(
    const Digest& subject, const std::string& artifact_type) {
  const auto filtered = [&](std::vector<Descriptor> all) {
    if (artifact_type.empty()) return all;
    std::erase_if(all, [&](const Descriptor& each) {
      return each.artifact_type != artifact_type;
    });
    return all;
  };
  absl::Status failed;
  for (const auto& host : hosts_) {
    if (!host->config.referrers) continue;
    std::vector<Descriptor> out;
    Ask ask;
    ask.path = absl::StrCat("referrers/", subject.str());
    ask.headers = {{"Accept", oci::kOciIndex}};
    ask.body_bytes_max = oci::kDocumentBytesMax;
    bool served = false;
    absl::Status status;
    for (int page = 0; page < kReferrerPagesMax; ++page) {
      absl::StatusOr<HttpResponse> response = Send(*host, ask);
      if (!response.ok()) {
        status = response.status();
        break;
      }
      // Registries from before OCI 1.1 answer in many ways.
      const std::string type = response->Header("content-type");
      served = response->status == 200 &&
               type.substr(0, type.find(';')) == oci::kOciIndex;
      if (!served) {
        if (response->status == 401 || response->status == 403 ||
            response->status == 429 || response->status >= 500) {
          status = ForStatus(*host, *response, ask.path);
        }
        break;
      }
      absl::StatusOr<oci::Index> index = oci::ParseIndex(response->body);
      if (!index.ok()) {
        return Annotate(index.status(),
                        absl::StrCat(host->config.host, ": ", ask.path));
      }
      out.insert(out.end(), index->manifests.begin(), index->manifests.end());
      if (out.size() > kReferrersMax) {
        return absl::ResourceExhaustedError(absl::StrCat(
            subject.str(), " has more than ", kReferrersMax, " referrers"));
      }
      ask.url = NextPage(*response, host->config.Url(SchemeOf(*host)) + "/");
      if (ask.url.empty()) return filtered(std::move(out));
    }
    if (absl::IsCancelled(status)) return status;
    if (served) {
      return absl::ResourceExhaustedError(
          absl::StrCat(subject.str(), ": more than ", kReferrerPagesMax,
                       " pages of referrers"));
    }
    if (!status.ok() && failed.ok()) failed = status;
  }
  RegistryOptions options = options_;
  options.reference.tag =
      absl::StrCat(AlgorithmName(subject.algorithm()), "-", subject.hex())
          .substr(0, oci::kTagBytesMax);
  options.reference.digest = Digest();
  Registry fallback(std::move(options));
  const absl::StatusOr<Descriptor> found = fallback.Resolve();
  if (absl::IsNotFound(found.status())) {
    // A host that failed may have known.
    if (!failed.ok()) return failed;
    return std::vector<Descriptor>();
  }
  if (!found.ok()) return found.status();
  ASSIGN_OR_RETURN(const std::string text, fallback.FetchDocument(*found));
  ASSIGN_OR_RETURN(oci::Index index, oci::ParseIndex(text));
  if (index.manifests.size() > kReferrersMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        subject.str(), " has more than ", kReferrersMax, " referrers"));
  }
  return filtered(std::move(index.manifests));
}

}  // namespace bulkhead::distribution
