#include "services/distribution/transfer_service.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/types/transfer/imagestore.pb.h"
#include "proto/containerd/types/transfer/progress.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"
#include "services/distribution/pull.h"

namespace bulkhead::distribution {
namespace {

namespace transfer = containerd::types::transfer;

constexpr char kRegistryType[] = "containerd.types.transfer.OCIRegistry";
constexpr char kImageStoreType[] = "containerd.types.transfer.ImageStore";
constexpr char kProgressType[] = "containerd.types.transfer.Progress";
constexpr char kAuthRequestType[] = "containerd.types.transfer.AuthRequest";
constexpr char kAuthResponseType[] = "containerd.types.transfer.AuthResponse";
constexpr char kSourceLabel[] = "containerd.io/distribution.source.";
constexpr char kRebaseCapability[] = "rebase";
constexpr char kOurRebasing[] = "overlayfs";

// Clients in other languages send "type.googleapis.com/...".
std::string BareType(const std::string& type_url) {
  return type_url.substr(type_url.rfind('/') + 1);
}

// "OCIRegistry" as containerd's messages name things: "*registry.OCIRegistry".
std::string ShortType(const std::string& type_url) {
  const std::string bare = BareType(type_url);
  return bare.substr(bare.rfind('.') + 1);
}

oci::Platform FromProto(const containerd::types::Platform& platform) {
  return {platform.os(),
          platform.architecture(),
          platform.variant(),
          platform.os_version(),
          {platform.os_features().begin(), platform.os_features().end()}};
}

bool SendProgress(Stream& stream, const ProgressEvent& event) {
  transfer::Progress message;
  message.set_event(event.event);
  message.set_name(event.name);
  for (const std::string& parent : event.parents) message.add_parents(parent);
  message.set_progress(event.progress);
  message.set_total(event.total);
  if (!event.desc.digest.empty()) {
    containerd::types::Descriptor* desc = message.mutable_desc();
    desc->set_media_type(event.desc.media_type);
    desc->set_digest(event.desc.digest.str());
    desc->set_size(event.desc.size_bytes);
  }
  return stream.Send({kProgressType, message.SerializeAsString()});
}

// Asks for credentials over the client's stream, one question at a time.
class StreamCredentials {
 public:
  StreamCredentials(std::shared_ptr<Stream> stream, std::string reference)
      : stream_(std::move(stream)), reference_(std::move(reference)) {}

  absl::StatusOr<Credentials> Ask(const std::string& host,
                                  const std::vector<std::string>& challenges) {
    std::lock_guard<std::mutex> lock(mutex_);
    transfer::AuthRequest request;
    request.set_host(host);
    request.set_reference(reference_);
    for (const std::string& challenge : challenges) {
      request.add_wwwauthenticate(challenge);
    }
    StreamMessage answer;
    if (!stream_->Send({kAuthRequestType, request.SerializeAsString()}) ||
        !stream_->Receive(&answer)) {
      return absl::UnauthenticatedError(
          "the client has closed the stream for credentials");
    }
    transfer::AuthResponse response;
    if (BareType(answer.type_url) != kAuthResponseType ||
        !response.ParseFromString(answer.value)) {
      return absl::InvalidArgumentError("the client's answer is malformed");
    }
    Credentials out;
    if (response.authtype() == transfer::CREDENTIALS) {
      out.username = response.username();
      out.secret = response.secret();
    } else if (response.authtype() == transfer::REFRESH) {
      out.username = response.username();
      out.secret = response.secret();
      out.refresh_token = true;
    }
    return out;
  }

 private:
  const std::shared_ptr<Stream> stream_;
  const std::string reference_;
  std::mutex mutex_;
};

std::string HostWithoutPort(const std::string& host) {
  const size_t colon = host.rfind(':');
  const size_t bracket = host.rfind(']');
  if (colon == std::string::npos ||
      (bracket != std::string::npos && colon < bracket)) {
    return host;
  }
  return host.substr(0, colon);
}

}  // namespace

struct TransferService::Call {
  grpc::ServerContext* context = nullptr;
  const containerd::services::transfer::v1::TransferRequest* request = nullptr;
  std::string ns;
  std::string lease;
  std::unique_ptr<Progress> progress;
  std::vector<std::shared_ptr<Stream>> streams;  // Closed at the end.
};

TransferService::TransferService(const config::Config& config,
                                 StreamTable* streams, HttpClient* http)
    : config_(config),
      peers_(Peers::For(config)),
      streams_(streams),
      http_(http) {}

void TransferService::Reload(const config::Config& config) {
  std::lock_guard<std::mutex> lock(mutex_);
  config_.distribution = config.distribution;
  config_.metadata = config.metadata;
  config_.proxy_plugins = config.proxy_plugins;
}

config::Config TransferService::CurrentConfig() {
  std::lock_guard<std::mutex> lock(mutex_);
  return config_;
}

grpc::Status TransferService::Transfer(
    grpc::ServerContext* context,
    const containerd::services::transfer::v1::TransferRequest* request,
    google::protobuf::Empty* response) {
  Call call;
  call.context = context;
  call.request = request;
  absl::StatusOr<std::string> ns = rpc::RequireNamespace(*context);
  if (!ns.ok()) return rpc::ToGrpc(ns.status());
  call.ns = *ns;
  call.lease = rpc::ContextOf(*context).lease;
  const absl::Cleanup close_streams = [&call] {
    call.progress.reset();  // Sends the last events.
    for (const auto& stream : call.streams) stream->Close();
  };
  if (running_.fetch_add(1) >= kTransfersMax) {
    running_.fetch_sub(1);
    return rpc::ToGrpc(absl::ResourceExhaustedError(
        absl::StrCat("more than ", kTransfersMax, " transfers at once")));
  }
  const absl::Cleanup count_down = [this] { running_.fetch_sub(1); };
  const absl::Status status = Run(call);
  if (!status.ok()) {
    log::Info("transfer failed",
              {{"namespace", call.ns}, {"error", status.ToString()}});
  }
  return rpc::ToGrpc(status);
}

absl::Status TransferService::Run(Call& call) {
  std::function<bool(const ProgressEvent&)> send;
  if (!call.request->options().progress_stream().empty()) {
    ASSIGN_OR_RETURN(
        std::shared_ptr<Stream> stream,
        streams_->Get(call.ns, call.request->options().progress_stream()));
    call.streams.push_back(stream);
    send = [stream](const ProgressEvent& event) {
      return SendProgress(*stream, event);
    };
  }
  call.progress = std::make_unique<Progress>(std::move(send));
  const std::string from = BareType(call.request->source().type_url());
  const std::string to = BareType(call.request->destination().type_url());
  if (to == kImageStoreType && from == kRegistryType) return PullImage(call);
  if (to == kImageStoreType && from == kImageStoreType) return Tag(call);
  return absl::UnimplementedError(
      absl::StrCat("method Transfer not implemented for ", ShortType(from),
                   " to ", ShortType(to)));
}

absl::Status TransferService::Tag(Call& call) {
  transfer::ImageStore source;
  transfer::ImageStore destination;
  if (!source.ParseFromString(call.request->source().value()) ||
      !destination.ParseFromString(call.request->destination().value())) {
    return absl::InvalidArgumentError("malformed ImageStore");
  }
  const auto store = OpenStore(peers_, {call.ns, call.lease});
  ASSIGN_OR_RETURN(ImageRecord image, store->GetImage(source.name()));
  image.name = destination.name();
  image.labels = {destination.labels().begin(), destination.labels().end()};
  return store->PutImage(image);
}

absl::Status TransferService::PullImage(Call& call) {
  transfer::OCIRegistry source;
  transfer::ImageStore destination;
  if (!source.ParseFromString(call.request->source().value())) {
    return absl::InvalidArgumentError("malformed OCIRegistry");
  }
  if (!destination.ParseFromString(call.request->destination().value())) {
    return absl::InvalidArgumentError("malformed ImageStore");
  }
  if (destination.extra_references_size() > 0) {
    return absl::UnimplementedError("extra references on a pull");
  }
  const config::Config config = CurrentConfig();
  const transfer::RegistryResolver& resolver = source.resolver();
  RegistryOptions options;
  ASSIGN_OR_RETURN(options.reference, oci::ParseFull(source.reference()));
  options.http = http_;
  HostsOptions hosts;
  hosts.config_path = resolver.host_dir().empty()
                          ? config.distribution.config_path
                          : resolver.host_dir();
  hosts.default_scheme = resolver.default_scheme();
  ASSIGN_OR_RETURN(options.hosts, HostsFor(options.reference.host, hosts));
  options.headers = {resolver.headers().begin(), resolver.headers().end()};
  options.stall_timeout = config.distribution.stall_timeout;
  StopFlag stop;
  grpc::ServerContext* const context = call.context;
  stop.client_gone = [context] { return context->IsCancelled(); };
  options.cancelled = [&stop] { return stop.Stopped(); };
  std::shared_ptr<StreamCredentials> credentials;
  if (!resolver.auth_stream().empty()) {
    ASSIGN_OR_RETURN(std::shared_ptr<Stream> stream,
                     streams_->Get(call.ns, resolver.auth_stream()));
    call.streams.push_back(stream);
    credentials =
        std::make_shared<StreamCredentials>(stream, source.reference());
    options.credentials = [credentials](
                              const std::string& host,
                              const std::vector<std::string>& challenges) {
      return credentials->Ask(host, challenges);
    };
  }

  ImageDestination image;
  image.name =
      destination.name().empty() ? source.reference() : destination.name();
  image.labels = {destination.labels().begin(), destination.labels().end()};
  for (const auto& platform : destination.platforms()) {
    image.platforms.push_back(FromProto(platform));
  }
  image.all_metadata = destination.all_metadata();
  image.manifest_limit = destination.manifest_limit();
  for (const auto& unpack : destination.unpacks()) {
    UnpackRequest out;
    if (unpack.has_platform()) out.platform = FromProto(unpack.platform());
    out.snapshotter = unpack.snapshotter().empty()
                          ? config.metadata.default_snapshotter
                          : unpack.snapshotter();
    const auto proxy = config.proxy_plugins.find(out.snapshotter);
    if (proxy == config.proxy_plugins.end()) {
      out.rebase = out.snapshotter == kOurRebasing;
    } else {
      const auto& list = proxy->second.capabilities;
      out.rebase = std::count(list.begin(), list.end(), kRebaseCapability) > 0;
    }
    image.unpacks.push_back(std::move(out));
  }

  // Everything fetched belongs to a lease until the image record names it.
  std::string lease = call.lease;
  if (lease.empty()) {
    ASSIGN_OR_RETURN(lease, CreateLease(peers_, call.ns));
  }
  const absl::Cleanup end_lease = [&] {
    if (call.lease.empty()) DeleteLease(peers_, call.ns, lease);
  };
  const auto store = OpenStore(peers_, {call.ns, lease});
  const oci::Reference reference = options.reference;
  FetchContext fetch;
  fetch.source_labels = {
      {kSourceLabel + HostWithoutPort(reference.host), reference.repository}};
  Registry registry(std::move(options));
  fetch.registry = &registry;
  fetch.store = store.get();
  fetch.progress = call.progress.get();
  fetch.stop = &stop;
  return Pull(fetch, reference, image,
              {config.distribution.max_concurrent_downloads,
               config.distribution.max_concurrent_unpacks});
}

}  // namespace bulkhead::distribution
