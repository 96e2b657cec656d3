#include "services/distribution/transfer_service.h"

#include <algorithm>
#include <condition_variable>
#include <thread>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/types/transfer/imagestore.pb.h"
#include "proto/containerd/types/transfer/importexport.pb.h"
#include "proto/containerd/types/transfer/progress.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"
#include "services/distribution/byte_stream.h"
#include "services/distribution/import.h"
#include "services/distribution/origin.h"
#include "services/distribution/pull.h"
#include "services/distribution/push.h"
#include "services/distribution/registry_signatures.h"
#include "services/distribution/stream_credentials.h"
#include "services/distribution/transfer_lease.h"

namespace bulkhead::distribution {
namespace {

namespace transfer = containerd::types::transfer;

constexpr std::chrono::milliseconds kWatchTick(200);

constexpr char kRegistryType[] = "containerd.types.transfer.OCIRegistry";
constexpr char kImageStoreType[] = "containerd.types.transfer.ImageStore";
constexpr char kImportType[] = "containerd.types.transfer.ImageImportStream";
constexpr char kExportType[] = "containerd.types.transfer.ImageExportStream";
constexpr char kProgressType[] = "containerd.types.transfer.Progress";
constexpr char kRebaseCapability[] = "rebase";
constexpr char kOurRebasing[] = "overlayfs";
constexpr char kOurImages[] = "erofs";

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

}  // namespace

// What Transfer's thread and its helpers share.
struct TransferService::Call {
  grpc::ServerContext* context = nullptr;
  const containerd::services::transfer::v1::TransferRequest* request = nullptr;
  std::string ns;
  std::string lease;
  std::unique_ptr<Progress> progress;
  std::vector<std::shared_ptr<Stream>> streams;    // Closed at the end.
  std::shared_ptr<StreamCredentials> credentials;  // Null: nobody to ask.
  StopFlag stop;
  std::vector<std::shared_ptr<void>> watchdogs;  // Go before `stop`.
};

namespace {

// Ends blocked reads and writes of a stream when the caller of Transfer goes.
class Watchdog {
 public:
  Watchdog(StopFlag* stop, std::shared_ptr<Stream> stream)
      : thread_([this, stop, stream] {
          std::unique_lock<std::mutex> lock(mutex_);
          while (!done_) {
            if (stop->Stopped()) {
              stream->Close();
              return;
            }
            changed_.wait_for(lock, kWatchTick);
          }
        }) {}
  ~Watchdog() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
      changed_.notify_all();
    }
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::thread thread_;
};

ImageDestination DestinationOf(const transfer::ImageStore& destination,
                               const config::Config& config) {
  ImageDestination image;
  image.name = destination.name();
  image.labels = {destination.labels().begin(), destination.labels().end()};
  for (const auto& platform : destination.platforms()) {
    image.platforms.push_back(FromProto(platform));
  }
  image.all_metadata = destination.all_metadata();
  image.manifest_limit = destination.manifest_limit();
  for (const auto& extra : destination.extra_references()) {
    image.extra_references.push_back(
        {extra.name(), extra.is_prefix(), extra.allow_overwrite(),
         extra.add_digest(), extra.skip_named_digest()});
  }
  for (const auto& unpack : destination.unpacks()) {
    UnpackRequest out;
    if (unpack.has_platform()) out.platform = FromProto(unpack.platform());
    out.snapshotter = unpack.snapshotter().empty()
                          ? config.metadata.default_snapshotter
                          : unpack.snapshotter();
    const auto proxy = config.proxy_plugins.find(out.snapshotter);
    if (proxy == config.proxy_plugins.end()) {
      out.rebase =
          out.snapshotter == kOurRebasing || out.snapshotter == kOurImages;
    } else {
      const auto& list = proxy->second.capabilities;
      out.rebase = std::count(list.begin(), list.end(), kRebaseCapability) > 0;
      out.remote = true;
    }
    image.unpacks.push_back(std::move(out));
  }
  return image;
}

HttpLimits HttpLimitsOf(const config::Config& config) {
  return {config.distribution.bandwidth_limit,
          config.distribution.max_connections_per_host};
}

absl::Status Approve(const StopFlag& stop, const Trust& trust,
                     const std::vector<std::string>& names,
                     const oci::Descriptor& image, SignatureSource* signatures,
                     const std::function<void(const std::string&)>& explain) {
  Trust::Question question;
  question.names = names;
  question.image = image;
  question.signatures = signatures;
  if (explain) {
    question.explain = [&explain](const std::string& line) {
      explain(line + "\n");
    };
  }
  question.cancelled = [&stop] { return stop.Stopped(); };
  question.now = absl::Now();
  return trust.Check(question);
}

PullLimits LimitsOf(const config::Config& config) {
  return {config.distribution.max_concurrent_downloads,
          config.distribution.max_concurrent_unpacks};
}

}  // namespace

TransferService::TransferService(const config::Config& config,
                                 StreamTable* streams, HttpClient* http)
    : config_(config),
      peers_(Peers::For(config)),
      streams_(streams),
      http_(http) {
  http_->SetLimits(HttpLimitsOf(config));
  LoadTrust();
}

void TransferService::LoadTrust() {
  absl::StatusOr<std::unique_ptr<Trust>> trust =
      Trust::Create(config_.distribution);
  trust_ = trust.ok()
               ? absl::StatusOr<std::shared_ptr<const Trust>>(*std::move(trust))
               : absl::FailedPreconditionError(MessageOf(trust.status()));
}

absl::StatusOr<std::shared_ptr<const Trust>> TransferService::CurrentTrust() {
  std::lock_guard<std::mutex> lock(mutex_);
  return trust_;
}

absl::Status TransferService::TrustStatus() { return CurrentTrust().status(); }

void TransferService::Reload(const config::Config& config) {
  http_->SetLimits(HttpLimitsOf(config));
  std::lock_guard<std::mutex> lock(mutex_);
  config_.distribution = config.distribution;
  config_.metadata = config.metadata;
  config_.proxy_plugins = config.proxy_plugins;
  LoadTrust();
  if (!trust_.ok()) {
    log::Error("every pull and import is refused until this is put right",
               {{"error", MessageOf(trust_.status())}});
  }
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
  call.stop.client_gone = [context] { return context->IsCancelled(); };
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
  if (to == kRegistryType && from == kImageStoreType) return PushImage(call);
  if (to == kImageStoreType && from == kImportType) return ImportImages(call);
  if (to == kExportType && from == kImageStoreType) return ExportImages(call);
  if (to == kExportType && from == kImportType) return Echo(call);
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
  RETURN_IF_ERROR(store->PutImage(image));
  for (const auto& extra : destination.extra_references()) {
    if (extra.is_prefix()) continue;
    image.name = extra.name();
    RETURN_IF_ERROR(store->PutImage(image));
  }
  return absl::OkStatus();
}

absl::StatusOr<RegistryOptions> TransferService::OptionsFor(
    Call& call, const containerd::types::transfer::OCIRegistry& source,
    const config::Config& config) {
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
  options.explain_headers = resolver.http_debug() != transfer::DISABLED;
  options.headers = {resolver.headers().begin(), resolver.headers().end()};
  options.stall_timeout = config.distribution.stall_timeout;
  options.cancelled = [stop = &call.stop] { return stop->Stopped(); };
  if (!resolver.auth_stream().empty()) {
    ASSIGN_OR_RETURN(std::shared_ptr<Stream> stream,
                     streams_->Get(call.ns, resolver.auth_stream()));
    call.streams.push_back(stream);
    call.watchdogs.push_back(std::make_shared<Watchdog>(&call.stop, stream));
    call.credentials = std::make_shared<StreamCredentials>(stream);
    options.credentials =
        StreamCredentials::For(call.credentials, source.reference());
  }
  if (!resolver.logs_stream().empty()) {
    ASSIGN_OR_RETURN(std::shared_ptr<Stream> stream,
                     streams_->Get(call.ns, resolver.logs_stream()));
    call.streams.push_back(stream);
    call.watchdogs.push_back(std::make_shared<Watchdog>(&call.stop, stream));
    const auto mutex = std::make_shared<std::mutex>();
    options.explain = [sink = WriteTo(stream), mutex](const std::string& line) {
      std::lock_guard<std::mutex> lock(*mutex);
      // A client that does not listen any more misses only lines.
      (void)sink(line.data(), line.size());
    };
  } else if (options.explain_headers) {
    options.explain = [](const std::string& line) {
      log::Info("registry", {{"request", line}});
    };
  }
  return options;
}

// Of the registry an image came from: with the log of `like`, but none of the
// headers and logins that were meant for another.
absl::StatusOr<RegistryOptions> TransferService::OriginOptions(
    Call& call, const oci::Reference& origin, const RegistryOptions& like,
    const config::Config& config) {
  RegistryOptions options;
  options.reference = origin;
  options.http = http_;
  HostsOptions hosts;
  hosts.config_path = config.distribution.config_path;
  ASSIGN_OR_RETURN(options.hosts, HostsFor(origin.host, hosts));
  options.stall_timeout = config.distribution.stall_timeout;
  options.cancelled = [stop = &call.stop] { return stop->Stopped(); };
  options.credentials =
      StreamCredentials::For(call.credentials, origin.Locator());
  options.explain = like.explain;
  options.explain_headers = like.explain_headers;
  return options;
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
  const config::Config config = CurrentConfig();
  ASSIGN_OR_RETURN(RegistryOptions options, OptionsFor(call, source, config));
  ImageDestination image = DestinationOf(destination, config);
  if (image.name.empty()) image.name = source.reference();
  // Everything fetched belongs to a lease until the image record names it.
  const oci::Reference reference = options.reference;
  ASSIGN_OR_RETURN(
      const auto lease,
      TransferLease::Take(peers_, call.ns, call.lease, reference.str()));
  const auto store = OpenStore(peers_, {call.ns, lease->id()});
  FetchContext fetch;
  fetch.source_labels = {
      {kSourceLabel + HostWithoutPort(reference.host), reference.repository}};
  ASSIGN_OR_RETURN(const std::shared_ptr<const Trust> trust, CurrentTrust());
  RegistrySignatures signatures(options);
  if (trust->active()) {
    fetch.approve = [&call, &trust, &signatures, explain = options.explain](
                        const std::vector<std::string>& names,
                        const oci::Descriptor& image) {
      return Approve(call.stop, *trust, names, image, &signatures, explain);
    };
  }
  Registry registry(std::move(options));
  fetch.streams_per_blob_max = config.distribution.max_streams_per_layer;
  fetch.registry = &registry;
  fetch.store = store.get();
  fetch.progress = call.progress.get();
  fetch.stop = &call.stop;
  fetch.ns = call.ns;
  const absl::Status status = Pull(fetch, reference, image, LimitsOf(config));
  if (status.ok()) {
    lease->DropKept();
  } else if (call.stop.resumable) {
    lease->Keep();
  }
  return status;
}

absl::Status TransferService::PushImage(Call& call) {
  transfer::ImageStore source;
  transfer::OCIRegistry destination;
  if (!source.ParseFromString(call.request->source().value())) {
    return absl::InvalidArgumentError("malformed ImageStore");
  }
  if (!destination.ParseFromString(call.request->destination().value())) {
    return absl::InvalidArgumentError("malformed OCIRegistry");
  }
  const config::Config config = CurrentConfig();
  ASSIGN_OR_RETURN(RegistryOptions options,
                   OptionsFor(call, destination, config));
  const auto store = OpenStore(peers_, {call.ns, call.lease});
  FetchContext fetch;
  fetch.store = store.get();
  fetch.progress = call.progress.get();
  fetch.stop = &call.stop;
  fetch.ns = call.ns;
  PushRequest push;
  push.image_name = source.name();
  for (const auto& platform : source.platforms()) {
    push.platforms.push_back(FromProto(platform));
  }
  push.source_label = kSourceLabel + HostWithoutPort(options.reference.host);
  push.uploads_max = config.distribution.max_concurrent_uploads;
  fetch.streams_per_blob_max = config.distribution.max_streams_per_layer;
  fetch.open_origin = [&, like = options](const oci::Reference& origin) {
    return OriginOptions(call, origin, like, config);
  };
  return Push(fetch, std::move(options), push);
}

absl::Status TransferService::ImportImages(Call& call) {
  transfer::ImageImportStream source;
  transfer::ImageStore destination;
  if (!source.ParseFromString(call.request->source().value())) {
    return absl::InvalidArgumentError("malformed ImageImportStream");
  }
  if (!destination.ParseFromString(call.request->destination().value())) {
    return absl::InvalidArgumentError("malformed ImageStore");
  }
  ASSIGN_OR_RETURN(std::shared_ptr<Stream> stream,
                   streams_->Get(call.ns, source.stream()));
  call.streams.push_back(stream);
  const config::Config config = CurrentConfig();
  ASSIGN_OR_RETURN(const auto lease,
                   TransferLease::Take(peers_, call.ns, call.lease, ""));
  const auto store = OpenStore(peers_, {call.ns, lease->id()});
  FetchContext fetch;
  fetch.store = store.get();
  fetch.progress = call.progress.get();
  fetch.stop = &call.stop;
  fetch.ns = call.ns;
  ASSIGN_OR_RETURN(const std::shared_ptr<const Trust> trust, CurrentTrust());
  if (trust->active()) {
    fetch.approve = [&call, &trust](const std::vector<std::string>& names,
                                    const oci::Descriptor& image) {
      return Approve(call.stop, *trust, names, image, nullptr, {});
    };
  }
  const Watchdog watchdog(&call.stop, stream);
  ImportRequest request;
  request.image = DestinationOf(destination, config);
  request.force_compress = source.force_compress();
  return Import(fetch, ReadFrom(stream), request, LimitsOf(config));
}

absl::Status TransferService::ExportImages(Call& call) {
  transfer::ImageStore source;
  transfer::ImageExportStream destination;
  if (!source.ParseFromString(call.request->source().value())) {
    return absl::InvalidArgumentError("malformed ImageStore");
  }
  if (!destination.ParseFromString(call.request->destination().value())) {
    return absl::InvalidArgumentError("malformed ImageExportStream");
  }
  ASSIGN_OR_RETURN(std::shared_ptr<Stream> stream,
                   streams_->Get(call.ns, destination.stream()));
  call.streams.push_back(stream);
  ExportRequest request;
  if (!source.name().empty()) request.names.push_back(source.name());
  for (const auto& extra : source.extra_references()) {
    (extra.is_prefix() ? request.prefixes : request.names)
        .push_back(extra.name());
  }
  for (const auto& platform : destination.platforms()) {
    request.platforms.push_back(FromProto(platform));
  }
  request.all_platforms = destination.all_platforms();
  request.skip_docker_manifest = destination.skip_compatibility_manifest();
  request.skip_non_distributable = destination.skip_non_distributable();
  // What is exported must not be collected meanwhile: the images name it, and
  // open descriptors outlive a removal.
  const auto store = OpenStore(peers_, {call.ns, call.lease});
  FetchContext fetch;
  fetch.store = store.get();
  fetch.progress = call.progress.get();
  fetch.stop = &call.stop;
  fetch.ns = call.ns;
  const config::Config config = CurrentConfig();
  fetch.open_origin = [&](const oci::Reference& origin) {
    return OriginOptions(call, origin, {}, config);
  };
  const Watchdog watchdog(&call.stop, stream);
  return Export(fetch, request, WriteTo(stream));
}

absl::Status TransferService::Echo(Call& call) {
  transfer::ImageImportStream source;
  transfer::ImageExportStream destination;
  if (!source.ParseFromString(call.request->source().value()) ||
      !destination.ParseFromString(call.request->destination().value())) {
    return absl::InvalidArgumentError("malformed stream");
  }
  ASSIGN_OR_RETURN(std::shared_ptr<Stream> from,
                   streams_->Get(call.ns, source.stream()));
  call.streams.push_back(from);
  ASSIGN_OR_RETURN(std::shared_ptr<Stream> to,
                   streams_->Get(call.ns, destination.stream()));
  call.streams.push_back(to);
  const Watchdog in_watchdog(&call.stop, from);
  const Watchdog out_watchdog(&call.stop, to);
  const ByteSource read = ReadFrom(from);
  const ByteSink write = WriteTo(to);
  char buffer[32768];
  for (;;) {
    ASSIGN_OR_RETURN(const size_t got, read(buffer, sizeof(buffer)));
    if (got == 0) return absl::OkStatus();
    RETURN_IF_ERROR(write(buffer, got));
  }
}

}  // namespace bulkhead::distribution
