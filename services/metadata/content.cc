#include "services/metadata/content.h"

#include <unordered_set>

#include "absl/strings/match.h"
#include "lib/digest/digest.h"
#include "lib/log/log.h"
#include "proto/containerd/events/content.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"
#include "services/metadata/listing.h"
#include "services/metadata/parallel.h"

namespace bulkhead::metadata {
namespace {

namespace events = containerd::events;
using content_v1::Info;

constexpr size_t kCheckPieceBytes = 1 << 20;
// Blobs deleted while a commit whose digest is not known beforehand waits.
constexpr size_t kDeletionStepMax = 64;
constexpr char kLabelShareable[] = "containerd.io/namespace.shareable";

absl::Status NoBlob(const std::string& digest) {
  return absl::NotFoundError(absl::StrCat("content digest ", digest));
}

absl::Status BlobExists(const std::string& digest) {
  return absl::AlreadyExistsError(absl::StrCat("content ", digest));
}

absl::Status NoIngest(const std::string& ref) {
  return absl::NotFoundError(absl::StrCat("reference ", ref));
}

absl::Status CheckDigest(const std::string& digest) {
  if (Digest::Parse(digest).ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(Quoted(digest), " failed validation"));
}

// The digest that a backend's "already exists" names.
std::string DigestIn(const std::string& text) {
  for (const char* prefix : {"sha256:", "sha384:", "sha512:"}) {
    const size_t at = text.find(prefix);
    if (at == std::string::npos) continue;
    const size_t end = text.find_first_not_of("0123456789abcdef", at + 7);
    std::string digest = text.substr(at, end - at);
    if (Digest::Parse(digest).ok()) return digest;
  }
  return "";
}

std::vector<std::string> KeysOf(const std::string& ns, const std::string& lease,
                                std::vector<std::string> keys) {
  if (!lease.empty()) keys.push_back(Key(kind::kLease, {ns, lease}));
  return keys;
}

std::optional<std::string> InfoField(const content_v1::Info& info,
                                     const filters::FieldPath& path) {
  if (path[0] == "digest") return info.digest();
  if (path[0] == "labels") return filters::MapField(info.labels(), path);
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Info> Content::Info(const std::string& ns,
                                   const std::string& digest) const {
  RETURN_IF_ERROR(CheckDigest(digest));
  ASSIGN_OR_RETURN(
      std::optional<content_v1::Info> info,
      store_.Get<content_v1::Info>(Key(kind::kBlob, {ns, digest})));
  if (!info.has_value()) return NoBlob(digest);
  return *std::move(info);
}

absl::StatusOr<Info> Content::Update(const std::string& ns,
                                     const content_v1::Info& wanted,
                                     const std::vector<std::string>& mask) {
  RETURN_IF_ERROR(CheckDigest(wanted.digest()));
  const std::string key = Key(kind::kBlob, {ns, wanted.digest()});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(std::optional<content_v1::Info> found,
                   txn.Get<content_v1::Info>(key));
  if (!found.has_value()) return NoBlob(wanted.digest());
  content_v1::Info updated = *found;
  if (mask.empty()) *updated.mutable_labels() = wanted.labels();
  for (const std::string& path : mask) {
    std::string label;
    if (MaskKey(path, "labels", &label)) {
      SetLabel(label, wanted.labels(), updated.mutable_labels());
    } else if (path == "labels") {
      *updated.mutable_labels() = wanted.labels();
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot update ", Quoted(path),
                       " field on content info ", Quoted(wanted.digest())));
    }
  }
  RETURN_IF_ERROR(CheckLabels(updated.labels(), "info.Labels"));
  DropEmpty(updated.mutable_labels());
  *updated.mutable_updated_at() = Now();
  txn.Put(key, updated);
  RETURN_IF_ERROR(txn.Commit());
  return updated;
}

absl::Status Content::List(
    const std::string& ns, const filters::Filter& filter,
    const std::function<bool(content_v1::Info&)>& visitor) const {
  return ListRecords<content_v1::Info>(
      store_, kind::kBlob, ns, filter, InfoField,
      [&](content_v1::Info& info, std::string_view) { return visitor(info); });
}

absl::Status Content::Delete(const std::string& ns, const std::string& digest,
                             const std::string& lease) {
  RETURN_IF_ERROR(CheckDigest(digest));
  const std::string key = Key(kind::kBlob, {ns, digest});
  Txn txn(store_, ns, KeysOf(ns, lease, {key}));
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) return NoBlob(digest);
  txn.Delete(key);
  txn.RemoveFromLease(lease, "content", digest);
  txn.NoteDeletion();
  events::ContentDelete event;
  event.set_digest(digest);
  txn.Publish("/content/delete", event);
  return txn.Commit();
}

absl::StatusOr<std::unique_ptr<BackendBlob>> Content::Open(
    const std::string& ns, const std::string& digest) const {
  RETURN_IF_ERROR(Info(ns, digest).status());
  return backend_.Open(digest);
}

absl::StatusOr<content_v1::Status> Content::Status(
    const std::string& ns, const std::string& ref) const {
  RETURN_IF_ERROR(CheckComponent(ref, "reference"));
  ASSIGN_OR_RETURN(std::optional<IngestRecord> record,
                   store_.Get<IngestRecord>(Key(kind::kIngest, {ns, ref})));
  absl::Status error = NoIngest(ref);
  content_v1::Status status;
  status.set_ref(ref);
  if (record.has_value() && record->backend_ref().empty()) {
    const absl::StatusOr<int64_t> size = backend_.Size(record->expected());
    if (size.ok()) {
      status.set_offset(*size);
      status.set_total(*size);
      *status.mutable_started_at() = Now();
      *status.mutable_updated_at() = Now();
      return status;
    }
  } else if (record.has_value()) {
    const absl::StatusOr<BackendIngest> ingest =
        backend_.Status(record->backend_ref());
    if (ingest.ok()) {
      status.set_offset(ingest->offset_bytes);
      status.set_total(ingest->total_bytes);
      *status.mutable_started_at() = ToTimestamp(ingest->started_at);
      *status.mutable_updated_at() = ToTimestamp(ingest->updated_at);
      return status;
    }
    if (!absl::IsNotFound(ingest.status())) error = ingest.status();
  }
  return Annotate(error,
                  absl::StrCat("could not get status for ref ", Quoted(ref)));
}

absl::StatusOr<std::vector<content_v1::Status>> Content::ListStatuses(
    const std::string& ns, const filters::Filter& filter) const {
  std::vector<std::string> refs;
  RETURN_IF_ERROR(store_.db().Scan(
      Prefix(kind::kIngest, {ns}), [&](std::string_view key, std::string_view) {
        std::string ref = Split(key)[1];
        if (filter.Match([&ref](const filters::FieldPath& path)
                             -> std::optional<std::string> {
              if (path[0] == "ref") return ref;
              return std::nullopt;
            })) {
          refs.push_back(std::move(ref));
        }
        return true;
      }));
  std::vector<content_v1::Status> all;
  for (const std::string& ref : refs) {
    absl::StatusOr<content_v1::Status> status = Status(ns, ref);
    if (absl::IsNotFound(status.status())) continue;  // Gone meanwhile.
    RETURN_IF_ERROR(status.status());
    all.push_back(*std::move(status));
  }
  return all;
}

absl::Status Content::Abort(const std::string& ns, const std::string& ref,
                            const std::string& lease) {
  RETURN_IF_ERROR(CheckComponent(ref, "reference"));
  const std::string key = Key(kind::kIngest, {ns, ref});
  std::string backend_ref;
  {
    Txn txn(store_, ns, KeysOf(ns, lease, {key}));
    ASSIGN_OR_RETURN(std::optional<IngestRecord> record,
                     txn.Get<IngestRecord>(key));
    if (!record.has_value()) return NoIngest(ref);
    backend_ref = record->backend_ref();
    txn.Delete(key);
    txn.RemoveFromLease(lease, "ingests", ref);
    RETURN_IF_ERROR(txn.Commit());
  }
  if (backend_ref.empty()) return absl::OkStatus();
  const absl::Status status = backend_.Abort(backend_ref);
  // Without a record, the sweep removes what is left.
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::Status Content::CheckAbsent(const std::string& ns,
                                  const std::string& lease,
                                  const std::string& digest) {
  const KeyedLocks::Guard guard = store_.digests().Lock({digest});
  return CheckAbsentLocked(ns, lease, digest);
}

absl::Status Content::CheckAbsentLocked(const std::string& ns,
                                        const std::string& lease,
                                        const std::string& digest) {
  const std::string key = Key(kind::kBlob, {ns, digest});
  ASSIGN_OR_RETURN(std::optional<content_v1::Info> info,
                   store_.Get<content_v1::Info>(key));
  if (!info.has_value()) return absl::OkStatus();
  const absl::StatusOr<int64_t> size = backend_.Size(digest);
  if (absl::IsNotFound(size.status())) {
    log::Error("blob is missing, will be fetched again", {{"digest", digest}});
    return absl::OkStatus();
  }
  // A service that is down says nothing about its blobs.
  if (size.ok() && *size != info->size()) {
    log::Error("blob is damaged, will be fetched again",
               {{"digest", digest},
                {"size", std::to_string(*size)},
                {"expected", std::to_string(info->size())}});
    const absl::Status removed = backend_.Delete(digest);
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
    return absl::OkStatus();
  }
  Txn txn(store_, ns, KeysOf(ns, lease, {key}));
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) return absl::OkStatus();
  RETURN_IF_ERROR(txn.AddToLease(lease, "content", digest));
  RETURN_IF_ERROR(txn.Commit());
  return BlobExists(digest);
}

absl::StatusOr<std::optional<int64_t>> Content::Shareable(
    const std::string& digest) const {
  if (isolated_) {
    bool shared = false;
    absl::Status error;
    RETURN_IF_ERROR(
        store_.Scan<containerd::services::namespaces::v1::Namespace>(
            Prefix(kind::kNamespace, {}),
            [&](const std::vector<std::string>& key, auto& ns) {
              auto it = ns.labels().find(kLabelShareable);
              if (it == ns.labels().end() || it->second != "true") return true;
              const auto found =
                  store_.db().Get(Key(kind::kBlob, {key[0], digest}));
              error = found.status();
              shared = found.ok() && found->has_value();
              return error.ok() && !shared;
            }));
    RETURN_IF_ERROR(error);
    if (!shared) return std::optional<int64_t>();
  }
  const absl::StatusOr<int64_t> size = backend_.Size(digest);
  if (absl::IsNotFound(size.status())) return std::optional<int64_t>();
  RETURN_IF_ERROR(size.status());
  return std::optional<int64_t>(*size);
}

absl::StatusOr<IngestRecord> Content::Register(const WriterRequest& request,
                                               bool is_virtual) {
  const std::string& ns = request.ns;
  const std::string key = Key(kind::kIngest, {ns, request.ref});
  ASSIGN_OR_RETURN(const uint64_t sequence, store_.NextSequence());
  Txn txn(store_, ns, KeysOf(ns, request.lease, {key}));
  ASSIGN_OR_RETURN(std::optional<IngestRecord> found,
                   txn.Get<IngestRecord>(key));
  IngestRecord record = found.value_or(IngestRecord());
  if (is_virtual) {
    record.clear_backend_ref();  // Bytes of a started ingest get swept.
  } else if (record.backend_ref().empty()) {
    record.set_backend_ref(absl::StrCat(ns, "/", sequence, "/", request.ref));
  }
  if (!request.expected.empty()) record.set_expected(request.expected);
  if (request.lease.empty()) {
    *record.mutable_expire_at() = ToTimestamp(absl::Now() + kIngestExpiry);
  } else {
    RETURN_IF_ERROR(txn.AddToLease(request.lease, "ingests", request.ref));
    record.clear_expire_at();
  }
  txn.Put(key, record);
  RETURN_IF_ERROR(txn.Commit());
  return record;
}

absl::Status Content::OpenBackend(ContentWriter* writer) {
  ASSIGN_OR_RETURN(const IngestRecord record,
                   Register(writer->request_, /*is_virtual=*/false));
  ASSIGN_OR_RETURN(
      writer->backend_,
      backend_.OpenWriter(record.backend_ref(), writer->request_.total_bytes));
  writer->opened_ = writer->backend_->opened();
  writer->virtual_digest_.clear();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ContentWriter>> Content::OpenWriter(
    const WriterRequest& request) {
  RETURN_IF_ERROR(CheckComponent(request.ref, "reference"));
  RETURN_IF_ERROR(store_.CheckLease(request.ns, request.lease));
  std::unique_ptr<ContentWriter> writer(new ContentWriter(*this));
  writer->request_ = request;
  if (!request.expected.empty()) {
    RETURN_IF_ERROR(CheckDigest(request.expected));
    const KeyedLocks::Guard guard = store_.digests().Lock({request.expected});
    RETURN_IF_ERROR(
        CheckAbsentLocked(request.ns, request.lease, request.expected));
    ASSIGN_OR_RETURN(const std::optional<int64_t> size,
                     Shareable(request.expected));
    if (size.has_value() &&
        (request.total_bytes == 0 || request.total_bytes == *size)) {
      RETURN_IF_ERROR(Register(request, /*is_virtual=*/true).status());
      writer->virtual_digest_ = request.expected;
      writer->opened_.offset_bytes = *size;
      writer->opened_.total_bytes = *size;
      writer->opened_.started_at_ns = absl::ToUnixNanos(absl::Now());
      writer->opened_.updated_at_ns = writer->opened_.started_at_ns;
      return writer;
    }
  }
  RETURN_IF_ERROR(OpenBackend(writer.get()));
  return writer;
}

absl::Status Content::Record(const WriterRequest& request,
                             const std::string& digest, int64_t size_bytes,
                             const LabelMap& labels, bool heals) {
  const std::string& ns = request.ns;
  const std::string key = Key(kind::kBlob, {ns, digest});
  const std::string ingest = Key(kind::kIngest, {ns, request.ref});
  Txn txn(store_, ns, KeysOf(ns, request.lease, {key, ingest}));
  RETURN_IF_ERROR(txn.AddToLease(request.lease, "content", digest));
  txn.Delete(ingest);
  txn.RemoveFromLease(request.lease, "ingests", request.ref);
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) {
    content_v1::Info info;
    info.set_digest(digest);
    info.set_size(size_bytes);
    *info.mutable_created_at() = Now();
    *info.mutable_updated_at() = info.created_at();
    *info.mutable_labels() = labels;
    DropEmpty(info.mutable_labels());
    txn.Put(key, info);
    events::ContentCreate event;
    event.set_digest(digest);
    event.set_size(size_bytes);
    txn.Publish("/content/create", event);
  }
  RETURN_IF_ERROR(txn.Commit());
  return exists && !heals ? BlobExists(digest) : absl::OkStatus();
}

absl::StatusOr<std::unordered_set<std::string>> Content::Referenced(
    const std::vector<std::string>& digests) const {
  std::vector<std::string> namespaces;
  RETURN_IF_ERROR(store_.db().Scan(Prefix(kind::kNamespace, {}),
                                   [&](std::string_view key, std::string_view) {
                                     namespaces.push_back(Split(key)[0]);
                                     return true;
                                   }));
  std::unordered_set<std::string> referenced;
  for (const std::string& digest : digests) {
    for (const std::string& ns : namespaces) {
      ASSIGN_OR_RETURN(const std::optional<std::string> record,
                       store_.db().Get(Key(kind::kBlob, {ns, digest})));
      if (!record.has_value()) continue;
      referenced.insert(digest);
      break;
    }
  }
  const std::unordered_set<std::string> asked(digests.begin(), digests.end());
  RETURN_IF_ERROR(store_.Scan<IngestRecord>(
      Prefix(kind::kIngest, {}),
      [&](const std::vector<std::string>&, IngestRecord& record) {
        if (record.backend_ref().empty() && asked.contains(record.expected())) {
          referenced.insert(record.expected());
        }
        return true;
      }));
  return referenced;
}

std::string Content::FaultOf(const std::string& digest, int64_t size_bytes,
                             bool read, int64_t* bytes) {
  const absl::StatusOr<int64_t> size = backend_.Size(digest);
  if (absl::IsNotFound(size.status())) {
    const auto named = Referenced({digest});
    return named.ok() && !named->empty() ? "its bytes are missing" : "";
  }
  if (!size.ok()) {
    return absl::StrCat("cannot be read: ", MessageOf(size.status()));
  }
  if (*size != size_bytes) {
    return absl::StrCat("it has ", *size, " bytes instead of ", size_bytes);
  }
  if (!read) return "";
  const absl::StatusOr<Digest> wanted = Digest::Parse(digest);
  if (!wanted.ok()) return "its name is no digest";
  const absl::StatusOr<std::unique_ptr<BackendBlob>> blob =
      backend_.Open(digest);
  if (absl::IsNotFound(blob.status())) return "";  // Deleted meanwhile.
  if (!blob.ok()) {
    return absl::StrCat("cannot be read: ", MessageOf(blob.status()));
  }
  Hasher hasher(wanted->algorithm());
  const absl::Status status = (*blob)->Read(
      0, *size, kCheckPieceBytes, [&hasher](const std::string& piece) {
        hasher.Update(piece.data(), piece.size());
        return true;
      });
  if (!status.ok()) {
    return absl::StrCat("cannot be read: ", MessageOf(status));
  }
  *bytes += *size;
  const Digest actual = hasher.Finish();
  if (actual == *wanted) return "";
  return absl::StrCat("its bytes hash to ", actual.str());
}

absl::Status Content::Forget(const std::string& digest,
                             const std::vector<std::string>& namespaces) {
  const KeyedLocks::Guard guard = store_.digests().Lock({digest});
  for (const std::string& ns : namespaces) {
    const std::string key = Key(kind::kBlob, {ns, digest});
    Txn txn(store_, ns, {key});
    ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
    if (!exists) continue;
    txn.Delete(key);
    events::ContentDelete event;
    event.set_digest(digest);
    txn.Publish("/content/delete", event);
    RETURN_IF_ERROR(txn.Commit());
  }
  const absl::Status status = backend_.Delete(digest);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::Status Content::Rebuild(const std::string& ns,
                              const std::string& digest) {
  RETURN_IF_ERROR(CheckDigest(digest));
  const KeyedLocks::Guard guard = store_.digests().Lock({digest});
  ASSIGN_OR_RETURN(const int64_t size, backend_.Size(digest));
  const std::string key = Key(kind::kBlob, {ns, digest});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (exists) return absl::OkStatus();
  content_v1::Info info;
  info.set_digest(digest);
  info.set_size(size);
  *info.mutable_created_at() = Now();
  *info.mutable_updated_at() = info.created_at();
  txn.Put(key, info);
  return txn.Commit();
}

absl::Status Content::SweepBackend() {
  absl::Status first;
  const auto note = [&first](const absl::Status& status, const char* what,
                             const std::string& id) {
    if (status.ok() || absl::IsNotFound(status)) return;
    log::Warn("garbage not removed, will be tried again",
              {{what, id}, {"error", MessageOf(status)}});
    first.Update(status);
  };

  // Ingests: the record is written before the ingest is made, so one listed
  // here without a record is garbage.
  absl::StatusOr<std::vector<BackendIngest>> ingests = backend_.ListIngests();
  note(ingests.status(), "backend", "content");
  if (ingests.ok() && !ingests->empty()) {
    std::unordered_set<std::string> known;
    RETURN_IF_ERROR(store_.Scan<IngestRecord>(
        Prefix(kind::kIngest, {}),
        [&known](const std::vector<std::string>&, IngestRecord& record) {
          known.insert(record.backend_ref());
          return true;
        }));
    for (const BackendIngest& ingest : *ingests) {
      if (known.contains(ingest.ref)) continue;
      note(backend_.Abort(ingest.ref), "ingest", ingest.ref);
    }
  }

  std::vector<std::string> blobs;
  note(backend_.ListBlobs([&blobs](const std::string& digest, int64_t) {
    blobs.push_back(digest);
  }),
       "backend", "content");
  if (blobs.empty()) return first;
  std::unordered_set<std::string> named;
  RETURN_IF_ERROR(
      store_.db().Scan(Prefix(kind::kBlob, {}),
                       [&named](std::string_view key, std::string_view) {
                         named.insert(Split(key)[1]);
                         return true;
                       }));
  std::erase_if(blobs, [&named](const std::string& digest) {
    return named.contains(digest);
  });
  for (size_t begin = 0; begin < blobs.size(); begin += kDeletionStepMax) {
    const size_t count = std::min(blobs.size() - begin, kDeletionStepMax);
    if (!blind_commits_.TryLock()) {
      note(absl::UnavailableError("a commit is under way"), "blob",
           blobs[begin]);
      continue;
    }
    std::vector<std::string> step(
        std::make_move_iterator(blobs.begin() + begin),
        std::make_move_iterator(blobs.begin() + begin + count));
    std::vector<absl::Status> results;
    {
      const KeyedLocks::Guard guard = store_.digests().Lock(step);
      const auto referenced = Referenced(step);
      if (referenced.ok()) {
        std::erase_if(step, [&](const std::string& digest) {
          return referenced->contains(digest);
        });
        results = backend_.DeleteMany(step);
      } else {
        results.assign(step.size(), referenced.status());
      }
    }
    blind_commits_.Unlock();
    for (size_t i = 0; i < step.size(); ++i) note(results[i], "blob", step[i]);
  }
  return first;
}

absl::Status ContentWriter::Append(int64_t offset_bytes,
                                   const std::string& data) {
  if (data.empty()) return absl::OkStatus();
  if (backend_ == nullptr) {
    return absl::FailedPreconditionError(
        "all bytes of the expected content are present");
  }
  return backend_->Append(offset_bytes, data);
}

absl::Status ContentWriter::Advance(int64_t offset_bytes) {
  if (backend_ == nullptr) return absl::OkStatus();
  return backend_->Advance(offset_bytes);
}

absl::Status ContentWriter::Truncate(int64_t offset_bytes) {
  if (backend_ == nullptr) {
    if (offset_bytes == opened_.offset_bytes) return absl::OkStatus();
    RETURN_IF_ERROR(content_.OpenBackend(this));
  }
  return backend_->Truncate(offset_bytes);
}

absl::StatusOr<std::string> ContentWriter::DigestSoFar() {
  return backend_ == nullptr ? virtual_digest_ : backend_->DigestSoFar();
}

absl::StatusOr<dataplane::CommitResult> ContentWriter::Commit(
    int64_t size_bytes, const std::string& expected, const LabelMap& labels) {
  if (!expected.empty()) RETURN_IF_ERROR(CheckDigest(expected));
  RETURN_IF_ERROR(CheckLabels(labels, "Labels"));
  RETURN_IF_ERROR(content_.store_.CheckLease(request_.ns, request_.lease));

  // Until the record is there, the sweep must not take the blob.
  const std::string& known = expected.empty() ? virtual_digest_ : expected;
  KeyedLocks::Guard guard;
  std::unique_ptr<absl::ReaderMutexLock> blind;
  if (known.empty()) {
    blind = std::make_unique<absl::ReaderMutexLock>(&content_.blind_commits_);
  } else {
    guard = content_.store_.digests().Lock({known});
    const absl::Status absent =
        content_.CheckAbsentLocked(request_.ns, request_.lease, known);
    if (absl::IsAlreadyExists(absent)) (void)Abort();  // Else swept later.
    RETURN_IF_ERROR(absent);
  }

  dataplane::CommitResult result;
  if (backend_ == nullptr) {
    if (size_bytes >= 0 && size_bytes != opened_.offset_bytes) {
      return absl::FailedPreconditionError(
          absl::StrCat(Quoted(request_.ref), " failed size validation: ",
                       opened_.offset_bytes, " != ", size_bytes));
    }
    if (known != virtual_digest_) {
      return absl::FailedPreconditionError(absl::StrCat(
          "unexpected commit digest ", virtual_digest_, ", expected ", known));
    }
    ASSIGN_OR_RETURN(result.size_bytes,
                     content_.backend_.Size(virtual_digest_));
    result.digest = virtual_digest_;
  } else {
    absl::StatusOr<dataplane::CommitResult> committed =
        backend_->Commit(size_bytes, expected);
    if (committed.ok()) {
      result = *std::move(committed);
    } else if (absl::IsAlreadyExists(committed.status())) {
      // Another namespace has it: no news for this one.
      result.digest =
          known.empty() ? DigestIn(MessageOf(committed.status())) : known;
      if (result.digest.empty()) return committed.status();
      ASSIGN_OR_RETURN(result.size_bytes,
                       content_.backend_.Size(result.digest));
    } else {
      return committed.status();
    }
  }
  RETURN_IF_ERROR(content_.Record(request_, result.digest, result.size_bytes,
                                  labels,
                                  /*heals=*/!known.empty()));
  return result;
}

absl::Status ContentWriter::Abort() {
  if (backend_ != nullptr) (void)backend_->Abort();  // Else swept later.
  const absl::Status status =
      content_.Abort(request_.ns, request_.ref, request_.lease);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace bulkhead::metadata
