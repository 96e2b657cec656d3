// Content: the store's contract through both daemons' sockets, then the wire's
// own rules, compared.
#include <gtest/gtest.h>

#include "lib/digest/digest.h"
#include "lib/rpc/context.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "services/content/remote_store.h"
#include "services/content/store_conformance.h"
#include "tests/conformance/daemons.h"

namespace bulkhead::conformance {
namespace {

namespace v1 = containerd::services::content::v1;
namespace leases_v1 = containerd::services::leases::v1;
using google::protobuf::Empty;

std::unique_ptr<content::Store> OpenIn(Daemon& daemon) {
  const std::string ns = daemon.FreshNamespace();
  // A lease keeps what the test stores from the collector.
  leases_v1::CreateRequest request;
  request.set_id("all");
  leases_v1::CreateResponse response;
  const auto context = rpc::MakeClientContext({ns, ""}, absl::Seconds(20));
  EXPECT_TRUE(leases_v1::Leases::Stub(daemon.channel())
                  .Create(context.get(), request, &response)
                  .ok());
  return content::OpenRemoteStore(daemon.channel(), ns, nullptr, "all");
}

std::string Sequence(Transcript& t, const std::string& lease,
                     const std::vector<v1::WriteContentRequest>& requests) {
  v1::Content::Stub stub(t.channel());
  const auto context = t.Call(lease);
  const auto stream = stub.Write(context.get());
  v1::WriteContentResponse response;
  std::string text;
  for (const auto& request : requests) {
    if (!stream->Write(request) || !stream->Read(&response)) break;
    text += "{" + response.ShortDebugString() + "} ";
  }
  stream->WritesDone();
  while (stream->Read(&response)) {  // containerd repeats the last one.
  }
  const grpc::Status status = stream->Finish();
  return text + std::to_string(status.error_code()) + " " +
         status.error_message();
}

v1::WriteContentRequest Message(v1::WriteAction action, const std::string& ref,
                                int64_t offset = 0,
                                const std::string& data = "",
                                const std::string& expected = "",
                                int64_t total = 0) {
  v1::WriteContentRequest request;
  request.set_action(action);
  request.set_ref(ref);
  request.set_offset(offset);
  request.set_data(data);
  request.set_expected(expected);
  request.set_total(total);
  return request;
}

void Writes(Transcript& t) {
  const std::string data = "conformance " + std::to_string(::getpid());
  const std::string digest = Digest::Of(data).str();
  const std::string other = Digest::Of("something else").str();
  const int64_t size = static_cast<int64_t>(data.size());
  v1::Content::Stub stub(t.channel());
  leases_v1::Leases::Stub leases(t.channel());
  leases_v1::CreateRequest create;
  create.set_id("l");
  leases_v1::CreateResponse created;
  t.Say("lease", leases.Create(t.Call().get(), create, &created));

  t.Say("no-ref", Sequence(t, "", {Message(v1::STAT, "")}));
  t.Say("no-lease", Sequence(t, "nope", {Message(v1::STAT, "r")}));
  t.Say("stat", Sequence(t, "l", {Message(v1::STAT, "r")}));
  t.Say("sticky-total",
        Sequence(t, "l",
                 {Message(v1::STAT, "sticky", 0, "", "", 10),
                  Message(v1::WRITE, "", 0, "12345"), Message(v1::STAT, ""),
                  Message(v1::STAT, "", 0, "", "", 20)}));
  t.Say("sticky-resume", Sequence(t, "l", {Message(v1::STAT, "sticky")}));
  t.Say("other-total",
        Sequence(t, "l", {Message(v1::STAT, "sticky", 0, "", "", 30)}));
  t.Say("write", Sequence(t, "l",
                          {Message(v1::WRITE, "r", 0, "123"),
                           Message(v1::WRITE, "", 3, "45")}));
  t.Say("gap", Sequence(t, "l", {Message(v1::WRITE, "r", 7, "x")}));
  t.Say("back", Sequence(t, "l", {Message(v1::WRITE, "r", 2, "x")}));
  t.Say("negative", Sequence(t, "l", {Message(v1::WRITE, "r", -1, "x")}));
  t.Say("anew", Sequence(t, "l", {Message(v1::WRITE, "r", 0, data)}));
  t.Say("anew-same-size",
        Sequence(t, "l",
                 {Message(v1::WRITE, "r9", 0, "123"),
                  Message(v1::WRITE, "", 0, "abc"), Message(v1::WRITE, "", 0),
                  Message(v1::STAT, ""), Message(v1::WRITE, "", 0, "end")}));
  t.Say("anew-later",
        Sequence(t, "l",
                 {Message(v1::STAT, "r9"), Message(v1::WRITE, "", 3, "!")}));
  t.Say("commit-size",
        Sequence(t, "l", {Message(v1::COMMIT, "r", size, "", "", size + 1)}));
  t.Say("commit-digest",
        Sequence(t, "l", {Message(v1::COMMIT, "r", size, "", other)}));
  t.Say("bad-expected",
        Sequence(t, "l", {Message(v1::COMMIT, "r", size, "", "sha256:12")}));
  t.Say("empty-data", Sequence(t, "l", {Message(v1::WRITE, "r", size, "")}));
  v1::WriteContentRequest commit = Message(v1::COMMIT, "r", size, "", digest);
  (*commit.mutable_labels())["k"] = "v";
  (*commit.mutable_labels())["empty"] = "";
  t.Say("commit", Sequence(t, "l", {commit}));
  t.Say("exists-open",
        Sequence(t, "l", {Message(v1::STAT, "r2", 0, "", digest)}));
  t.Say("exists-later", Sequence(t, "l",
                                 {Message(v1::STAT, "r3"),
                                  Message(v1::STAT, "", 0, "", digest)}));
  t.Say("exists-commit", Sequence(t, "l",
                                  {Message(v1::WRITE, "r4", 0, data),
                                   Message(v1::COMMIT, "", size)}));
  t.Say("commit-wipes", Sequence(t, "l",
                                 {Message(v1::WRITE, "r5", 0, "12345"),
                                  Message(v1::COMMIT, "", 0, "", "", 5)}));
  t.Say("unknown-action",
        Sequence(t, "l", {Message(static_cast<v1::WriteAction>(7), "r6")}));
  v1::WriteContentRequest labels = Message(v1::COMMIT, "r7", 0, "x");
  (*labels.mutable_labels())["k"] = std::string(5000, 'v');
  t.Say("label-too-long", Sequence(t, "l", {labels}));
  const std::string sha512 = Digest::Of("512", DigestAlgorithm::kSha512).str();
  t.Say("sha512", Sequence(t, "l",
                           {Message(v1::WRITE, "r8", 0, "512", sha512),
                            Message(v1::COMMIT, "", 3, "", sha512)}));

  // Status, abort, lock.
  v1::StatusRequest status;
  v1::StatusResponse found;
  for (const char* ref : {"sticky", "none", ""}) {
    status.set_ref(ref);
    found.Clear();
    const grpc::Status s = stub.Status(t.Call().get(), status, &found);
    t.Say(std::string("status-") + ref, s, found);
  }
  v1::AbortRequest abort;
  Empty empty;
  abort.set_ref("none");
  t.Say("abort-none", stub.Abort(t.Call().get(), abort, &empty));
  {
    const auto context = t.Call("l");
    const auto holder = stub.Write(context.get());
    v1::WriteContentResponse response;
    holder->Write(Message(v1::STAT, "held"));
    holder->Read(&response);
    t.Say("locked", Sequence(t, "l", {Message(v1::STAT, "held")}));
    holder->WritesDone();
    while (holder->Read(&response)) {
    }
    t.Say("held", holder->Finish());
  }
  v1::ListStatusesRequest list;
  v1::ListStatusesResponse statuses;
  list.add_filters("ref==sticky");
  const grpc::Status listed =
      stub.ListStatuses(t.Call().get(), list, &statuses);
  t.Say("statuses", listed, statuses);
  list.set_filters(0, "ref==/x");
  t.Say("statuses-filter", stub.ListStatuses(t.Call().get(), list, &statuses));

  // What the lease holds.
  leases_v1::ListResourcesRequest resources;
  resources.set_id("l");
  leases_v1::ListResourcesResponse held;
  const grpc::Status s = leases.ListResources(t.Call().get(), resources, &held);
  t.Say("leased", s, held);

  // Another namespace needs no bytes; a wrong total makes it need them.
  const std::string ns2 = t.ns() + "-2";
  for (const int64_t total : {size + 1, int64_t{0}}) {
    const auto context = t.Call("", ns2);
    const auto stream = stub.Write(context.get());
    v1::WriteContentResponse response;
    stream->Write(Message(v1::STAT, "share", 0, "", digest, total));
    stream->Read(&response);
    t.Say("share-" + std::to_string(total == 0), response.ShortDebugString());
    if (total == 0) {
      stream->Write(Message(v1::COMMIT, "", size, "", digest));
      response.Clear();
      stream->Read(&response);
      t.Say("share-commit", response.ShortDebugString());
    }
    stream->WritesDone();
    while (stream->Read(&response)) {
    }
    (void)stream->Finish();
  }
}

bool IsGood(const std::string& digest) { return Digest::Parse(digest).ok(); }

void Records(Transcript& t) {
  const std::string data = "records " + std::to_string(::getpid());
  const std::string digest = Digest::Of(data).str();
  const std::string none = Digest::Of("nothing has this").str();
  v1::Content::Stub stub(t.channel());
  v1::WriteContentRequest commit = Message(v1::COMMIT, "r", 0, data, digest,
                                           static_cast<int64_t>(data.size()));
  (*commit.mutable_labels())["containerd.io/gc.root"] = "x";
  (*commit.mutable_labels())["a.b"] = "c";
  t.Say("put", Sequence(t, "", {commit}));
  for (const std::string& d :
       {digest, none, std::string("sha256:12"), std::string(""),
        std::string("md5:d41d8cd98f00b204e9800998ecf8427e"),
        std::string("nonsense")}) {
    v1::InfoRequest info;
    info.set_digest(d);
    v1::InfoResponse response;
    const grpc::Status s = stub.Info(t.Call().get(), info, &response);
    t.Say("info-" + d.substr(0, 12), s, response);
    v1::DeleteContentRequest remove;
    remove.set_digest(d == digest ? none : d);
    Empty empty;
    t.Say((IsGood(d) ? "delete " : "delete-") + d.substr(0, 12),
          stub.Delete(t.Call().get(), remove, &empty));
    v1::ReadContentRequest read;
    read.set_digest(d);
    const auto context = t.Call();
    const auto stream = stub.Read(context.get(), read);
    v1::ReadContentResponse piece;
    while (stream->Read(&piece)) {
    }
    t.Say((IsGood(d) ? "read " : "read-") + d.substr(0, 12), stream->Finish());
  }
  v1::InfoRequest info;
  info.set_digest(digest);
  v1::InfoResponse response;
  t.Say("info-no-ns", stub.Info(t.Call("", "-").get(), info, &response));
  t.Say("info-bad-ns", stub.Info(t.Call("", "a/b").get(), info, &response));
  t.Say("info-other-ns",
        stub.Info(t.Call("", t.ns() + "x").get(), info, &response));

  // Ranges.
  const int64_t size = static_cast<int64_t>(data.size());
  for (const auto& [offset, length] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 0},
                                                {3, 2},
                                                {3, 1000},
                                                {-4, 2},
                                                {size, 0},
                                                {size + 1, 0},
                                                {2, -5}}) {
    v1::ReadContentRequest read;
    read.set_digest(digest);
    read.set_offset(offset);
    read.set_size(length);
    const auto context = t.Call();
    const auto stream = stub.Read(context.get(), read);
    v1::ReadContentResponse piece;
    std::string text;
    while (stream->Read(&piece)) text += "{" + piece.ShortDebugString() + "}";
    const grpc::Status s = stream->Finish();
    t.Hide(std::to_string(::getpid()), "PID");
    t.Say("range-" + std::to_string(offset - (offset > 5 ? size - 10 : 0)) +
              "-" + std::to_string(length),
          text + std::to_string(s.error_code()) + " " + s.error_message());
  }

  // Field masks.
  const auto update = [&](const std::string& label, const std::string& d,
                          const std::vector<std::string>& paths,
                          const std::map<std::string, std::string>& labels) {
    v1::UpdateRequest request;
    request.mutable_info()->set_digest(d);
    request.mutable_info()->mutable_labels()->insert(labels.begin(),
                                                     labels.end());
    for (const std::string& path : paths) {
      request.mutable_update_mask()->add_paths(path);
    }
    v1::UpdateResponse reply;
    const grpc::Status s = stub.Update(t.Call().get(), request, &reply);
    t.Say(label, s, reply);
  };
  const std::string root = "containerd.io/gc.root";
  update("update-one", digest, {"labels.x.y"}, {{"x.y", "z"}, {"no", "n"}});
  update("update-delete", digest, {"labels.a.b"}, {});
  update("update-size", digest, {"size"}, {});
  update("update-digest", digest, {"digest"}, {});
  update("update-empty", digest, {"labels."}, {{"", "v"}});
  update("update-all", digest, {"labels"}, {{root, "1"}, {"e", ""}});
  update("update-nomask", digest, {}, {{root, "2"}, {"n", "m"}});
  update("update-none", none, {"labels.x"}, {{"x", "y"}});
  update("update-bad", "x", {"labels.x"}, {{"x", "y"}});
  update("update-long", digest, {"labels.x"}, {{"x", std::string(5000, 'y')}});

  for (const char* filter :
       {"", "digest~=/sha256/", "labels.n==m", "labels.n", "size==5",
        "labels.\"containerd.io/gc.root\"==2,labels.n!=x", "labels.none",
        "labels.n==m,", "n=", "digest~=/(/", "x==.y", "labels.n == m"}) {
    v1::ListContentRequest list;
    list.add_filters(filter);
    const auto context = t.Call();
    const auto stream = stub.List(context.get(), list);
    v1::ListContentResponse batch;
    std::string text;
    while (stream->Read(&batch)) text += "{" + batch.ShortDebugString() + "}";
    const grpc::Status s = stream->Finish();
    t.Say(std::string("list-") + filter,
          text + std::to_string(s.error_code()) + " " + s.error_message());
  }
  v1::DeleteContentRequest remove;
  remove.set_digest(digest);
  Empty empty;
  t.Say("delete", stub.Delete(t.Call().get(), remove, &empty));
  t.Say("delete again", stub.Delete(t.Call().get(), remove, &empty));
}

TEST(ContentCompared, Writes) { Compare("content-write", Writes); }
TEST(ContentCompared, Records) { Compare("content", Records); }

}  // namespace
}  // namespace bulkhead::conformance

namespace bulkhead::content {
INSTANTIATE_TEST_SUITE_P(
    Socket, StoreConformance,
    ::testing::Values(Backend{"bulkhead",
                              [](const std::string&) {
                                return conformance::OpenIn(
                                    conformance::Daemon::Ours());
                              },
                              true},
                      Backend{"containerd",
                              [](const std::string&) {
                                return conformance::OpenIn(
                                    conformance::Daemon::Containerd());
                              },
                              true, true, true}),
    [](const auto& info) { return info.param.name; });
}  // namespace bulkhead::content
