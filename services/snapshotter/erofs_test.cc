// Images from archives: checked by fsck.erofs and the kernel, and compared with
// what ExtractTar() makes of the same archive.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/erofs_layer.h"
#include "services/snapshotter/tar_extract.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::TempDir;
using Pairs = std::vector<std::pair<std::string, std::string>>;

class StringStream : public ByteStream {
 public:
  explicit StringStream(std::string data) : data_(std::move(data)) {}
  absl::StatusOr<absl::string_view> Fill() override {
    // In pieces, as they come from a pipe.
    return absl::string_view(data_).substr(at_, 10007);
  }
  void Consume(size_t size_bytes) override { at_ += size_bytes; }

 private:
  const std::string data_;
  size_t at_ = 0;
};

class Tar {
 public:
  int mode = 0644, uid = 0, gid = 0;
  int64_t mtime = 1500000000;
  Pairs pax;

  Tar& Add(char type, const std::string& name, const std::string& data = "",
           const std::string& link = "", int major_n = 0, int minor_n = 0) {
    Pairs records = std::move(pax);
    pax.clear();
    if (name.size() > 99) records.emplace_back("path", name);
    if (link.size() > 99) records.emplace_back("linkpath", link);
    if (!records.empty()) {
      std::string text;
      for (const auto& [key, value] : records) {
        const size_t body = key.size() + value.size() + 3;
        size_t total = body + 1;
        while (total != body + std::to_string(total).size()) ++total;
        text += absl::StrCat(total, " ", key, "=", value, "\n");
      }
      Block('x', "pax", text, "", 0, 0);
    }
    Block(type, name.substr(0, 99), data, link.substr(0, 99), major_n, minor_n);
    return *this;
  }
  std::string Take() { return out_ + std::string(1024, '\0'); }

 private:
  void Block(char type, const std::string& name, const std::string& data,
             const std::string& link, int major_n, int minor_n) {
    std::string h(512, '\0');
    h.replace(0, name.size(), name);
    const auto octal = [&h](size_t at, int width, uint64_t value) {
      h.replace(at, width, absl::StrFormat("%0*o", width, value));
    };
    octal(100, 7, mode);
    octal(108, 7, uid);
    octal(116, 7, gid);
    octal(124, 11, data.size());
    octal(136, 11, mtime);
    h.replace(148, 8, "        ");
    h[156] = type;
    h.replace(157, link.size(), link);
    h.replace(257, 8, std::string("ustar\00000", 8));
    octal(329, 7, major_n);
    octal(337, 7, minor_n);
    unsigned sum = 0;
    for (const char c : h) sum += static_cast<uint8_t>(c);
    octal(148, 6, sum);
    h[154] = '\0';
    out_ += h + data;
    out_.resize((out_.size() + 511) / 512 * 512);
  }
  std::string out_;
};

// Every entry by path, with its attributes in one line.
void Describe(const std::string& root, const std::string& path,
              std::map<std::string, std::string>* out,
              std::map<ino_t, std::string>* links) {
  const std::string full = path.empty() ? root : absl::StrCat(root, "/", path);
  struct stat st;
  ASSERT_EQ(::lstat(full.c_str(), &st), 0) << full;
  std::string line =
      absl::StrFormat("%o %d:%d", st.st_mode, st.st_uid, st.st_gid);
  if (!path.empty()) {  // The root has the time of its making.
    absl::StrAppend(&line, " t=", st.st_mtim.tv_sec, ".", st.st_mtim.tv_nsec);
  }
  if (!S_ISDIR(st.st_mode)) {
    absl::StrAppend(&line, " n=", st.st_nlink);
    if (st.st_nlink > 1) {
      absl::StrAppend(&line, " as ",
                      links->try_emplace(st.st_ino, path).first->second);
    }
  }
  if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) {
    absl::StrAppend(&line, " d=", major(st.st_rdev), ":", minor(st.st_rdev));
  }
  if (S_ISLNK(st.st_mode)) {
    std::string to(5000, '\0');
    const ssize_t n = ::readlink(full.c_str(), to.data(), to.size());
    ASSERT_GE(n, 0) << full;
    absl::StrAppend(&line, " -> ", to.substr(0, n));
  }
  if (S_ISREG(st.st_mode)) {
    const auto text = os::ReadFile(full, 64 << 20);
    ASSERT_TRUE(text.ok()) << text.status();
    absl::StrAppend(&line, " s=", text->size(),
                    " h=", std::hash<std::string>()(*text));
  }
  char names[65536];
  const ssize_t size = ::llistxattr(full.c_str(), names, sizeof(names));
  std::map<std::string, std::string> xattrs;
  for (ssize_t at = 0; at < size; at += std::strlen(names + at) + 1) {
    std::string value(65536, '\0');
    const ssize_t n =
        ::lgetxattr(full.c_str(), names + at, value.data(), value.size());
    ASSERT_GE(n, 0) << full << " " << names + at;
    xattrs[names + at] = value.substr(0, n);
  }
  for (const auto& [key, value] : xattrs) {
    absl::StrAppend(&line, " ", key, "=", value);
  }
  (*out)[path] = line;
  if (!S_ISDIR(st.st_mode)) return;
  std::map<std::string, bool> children;
  DIR* dir = ::opendir(full.c_str());
  ASSERT_NE(dir, nullptr) << full;
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") children[name] = true;
  }
  ::closedir(dir);
  for (const auto& [name, _] : children) {
    Describe(root, path.empty() ? name : absl::StrCat(path, "/", name), out,
             links);
  }
}

std::map<std::string, std::string> Describe(const std::string& root) {
  std::map<std::string, std::string> out;
  std::map<ino_t, std::string> links;
  Describe(root, "", &out, &links);
  return out;
}

class Erofs : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ::umask(0);
  }
  void TearDown() override { EXPECT_TRUE(os::UnmountTree(Mnt()).ok()); }
  std::string Mnt() { return dir_.Path("mnt"); }
  std::string Image() { return dir_.Path("image"); }

  absl::Status Write(const std::string& tar,
                     std::vector<ErofsImplicitDir>* implicit = nullptr) {
    StringStream stream(tar);
    const auto fd = os::Open(Image(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    EXPECT_TRUE(fd.ok());
    std::vector<ErofsImplicitDir> unused;
    const ExtractOptions options{.overlay_whiteouts = true};
    return WriteErofsLayer(stream, fd->get(), {.mode = 0755}, options,
                           implicit == nullptr ? &unused : implicit)
        .status();
  }
  void Fsck() {
    EXPECT_EQ(std::system(absl::StrCat("fsck.erofs ", Image(), " >",
                                       dir_.Path("fsck"), " 2>&1")
                              .c_str()),
              0)
        << *os::ReadFile(dir_.Path("fsck"), 1 << 20);
  }
  void Mount() {
    ::mkdir(Mnt().c_str(), 0755);
    const absl::Status status =
        os::Mount({"erofs", Image(), "", {"ro"}}, Mnt());
    ASSERT_TRUE(status.ok()) << status;
  }
  // The image and the tree made from `tar` show the same.
  void Compare(const std::string& tar, bool fsck = true) {
    const std::string tree = dir_.Path(absl::StrCat("tree", count_++));
    ASSERT_EQ(::mkdir(tree.c_str(), 0755), 0);
    StringStream stream(tar);
    const ExtractOptions options{.overlay_whiteouts = true};
    const absl::Status theirs = ExtractTar(stream, tree, options).status();
    const absl::Status ours = Write(tar);
    // A dangling symlink to above the root: refused there, confined here.
    if (absl::StrContains(theirs.message(), "escapes the root")) return;
    ASSERT_EQ(ours.ok(), theirs.ok()) << ours << "\n" << theirs;
    if (!ours.ok()) return;
    if (fsck) Fsck();
    Mount();
    auto image = Describe(Mnt());
    auto extracted = Describe(tree);
    ASSERT_TRUE(os::UnmountTree(Mnt()).ok());
    // Directories nobody spoke of have the time of their making.
    for (auto& [path, line] : extracted) {
      const auto it = image.find(path);
      ASSERT_NE(it, image.end()) << path << ": " << line;
      if (absl::StartsWith(line, "20000 ")) {  // Whiteouts likewise.
        it->second = it->second.substr(0, it->second.find(" t="));
        line = line.substr(0, line.find(" t="));
      }
      if (absl::StrContains(it->second, "t=0.0") &&
          absl::StartsWith(line, "40755 0:0")) {
        it->second = line = "implicit";
      }
      EXPECT_EQ(it->second, line) << path;
    }
    EXPECT_EQ(image.size(), extracted.size());
    if (HasFailure()) {
      for (const auto& [path, line] : image) {
        if (!extracted.contains(path)) ADD_FAILURE() << "only here " << path;
      }
    }
    EXPECT_TRUE(os::RemoveAll(tree).ok());
  }

  TempDir dir_;
  int count_ = 0;
};

TEST_F(Erofs, NothingAtAll) { Compare(Tar().Take()); }

TEST_F(Erofs, EveryKind) {
  Tar tar;
  tar.mode = 0751;
  tar.uid = 1000, tar.gid = 70000;
  tar.Add('5', "dir/");
  tar.mode = 04755;
  tar.pax = {{"mtime", "1600000000.123456789"},
             {"SCHILY.xattr.user.note", "kept"},
             {"SCHILY.xattr.security.capability",
              std::string("\1\0\0\2\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20)}};
  tar.Add('0', "dir/file", std::string(5000, 'x'));
  tar.mode = 0600;
  tar.Add('0', "dir/empty");
  tar.Add('0', "dir/block", std::string(4096, 'b'));
  tar.Add('0', "dir/big", std::string(1234567, 'B'));
  tar.Add('0', "dir/almost", std::string(4095, 'a'));
  tar.Add('0', "dir/inline", std::string(4032, 'i'));
  tar.Add('2', "link", "", "dir/file");
  tar.Add('2', "long-link", "", std::string(4000, 'l'));
  tar.Add('2', "longest-link", "", std::string(4090, 'm'));
  tar.Add('3', "null", "", "", 1, 3);
  tar.Add('4', "disk", "", "", 259, 70000);
  tar.Add('6', "fifo");
  tar.Add('0', "dir/.wh.gone");
  tar.Add('0', "other/.wh..wh..opq");
  tar.Add('5', "nothing/");
  tar.pax = {{"SCHILY.xattr.user.folder", std::string(3000, 'v')}};
  tar.Add('5', "much/");
  tar.pax = {{"SCHILY.xattr.user.a", std::string(2000, 'v')},
             {"SCHILY.xattr.user.b", std::string(1000, 'w')}};
  tar.Add('0', "xattrs", std::string(8000, 'y'));
  tar.Add('0', std::string(255, 'n') + "/" + std::string(255, 'm'), "deep");
  Compare(tar.Take());
}

TEST_F(Erofs, HardLinksReplacementsAndChangedMinds) {
  Tar tar;
  tar.Add('0', "a", "one").Add('1', "b", "", "a").Add('1', "d/c", "", "b");
  tar.mode = 0600;
  tar.uid = 5;
  tar.mtime = 1500000007;
  tar.Add('1', "e", "", "a");
  tar.Add('0', "b", "not a link any more");
  tar.pax = {{"SCHILY.xattr.user.late", std::string(3000, 'x')}};
  tar.Add('1', "f", "", "d/c");
  tar.Add('0', "big", std::string(100000, 'q'));
  tar.pax = {{"SCHILY.xattr.user.late", std::string(3900, 'x')}};
  tar.Add('1', "big2", "", "big");
  tar.Add('2', "l", "", "d").Add('1', "l2", "", "l").Add('0', "l/through", "x");
  tar.Add('2', "up", "", "../../d/../d").Add('0', "up/via", "y");
  tar.Add('2', "no", "", "where/to").Add('0', "no/file", "z");
  tar.Add('5', "gone/x/y")
      .Add('0', "gone/x/f", "1")
      .Add('1', "g", "", "gone/x/f");
  tar.Add('0', ".wh.gone").Add('5', "gone");
  tar.Add('0', "gone/new", "n");
  tar.Add('0', "d", "a file in place of a directory");
  Compare(tar.Take());
}

TEST_F(Erofs, DirectoriesOfManyNames) {
  Tar tar;
  for (int i = 0; i < 900; ++i) {
    tar.Add(
        '0',
        absl::StrCat("many/", i * 7919 % 900, "-", std::string(i % 200, 'n')),
        std::string(i % 50, 'd'));
  }
  for (const char* name : {"!", "-", ".a", "..b", "...", "z", "\xff"}) {
    tar.Add('0', absl::StrCat("few/", name));
  }
  Compare(tar.Take());
}

TEST_F(Erofs, HolesStay) {
  const std::string a = dir_.Path("a");
  ASSERT_EQ(std::system(absl::StrCat("cd ", dir_.path(),
                                     " && printf head >a && printf tail | dd "
                                     "of=a bs=1 seek=9000000 conv=notrunc "
                                     "status=none && truncate -s 5G a && "
                                     "truncate -s 6000 all-hole && tar "
                                     "--format=pax -S -cf t a all-hole")
                            .c_str()),
            0);
  const auto tar = os::ReadFile(dir_.Path("t"), 64 << 20);
  ASSERT_TRUE(tar.ok());
  ASSERT_LT(tar->size(), 1000000u);
  ASSERT_TRUE(Write(*tar).ok());
  Fsck();
  struct stat st;
  ASSERT_EQ(::stat(Image().c_str(), &st), 0);
  EXPECT_LT(st.st_blocks * 512, 8 << 20);
  Mount();
  const auto fd = os::Open(Mnt() + "/a", O_RDONLY);
  ASSERT_TRUE(fd.ok());
  ASSERT_EQ(::fstat(fd->get(), &st), 0);
  EXPECT_EQ(st.st_size, int64_t{5} << 30);
  char text[5] = {};
  ASSERT_EQ(::pread(fd->get(), text, 4, 0), 4);
  EXPECT_STREQ(text, "head");
  ASSERT_EQ(::pread(fd->get(), text, 4, 9000000), 4);
  EXPECT_STREQ(text, "tail");
  EXPECT_EQ(::lseek(fd->get(), 0, SEEK_HOLE), 8192);
  EXPECT_EQ(::lseek(fd->get(), 8192, SEEK_DATA), 9000000 / 8192 * 8192);
  EXPECT_EQ(os::ReadFile(Mnt() + "/all-hole", 1 << 20).value(),
            std::string(6000, '\0'));
}

TEST_F(Erofs, ImplicitDirectoriesGetTheirAttributesLater) {
  Tar tar;
  tar.Add('0', "var/lib/data", "d");
  std::vector<ErofsImplicitDir> implicit;
  ASSERT_TRUE(Write(tar.Take(), &implicit).ok());
  ASSERT_EQ(implicit.size(), 2u);
  EXPECT_EQ(implicit[1].path, "var/lib");
  const auto fd = os::Open(Image(), O_RDWR);
  ErofsAttributes attributes{.mode = 01777,
                             .uid = 7,
                             .gid = 8,
                             .mtime_ns = 1500000000000000009,
                             .xattrs = {{"user.x", std::string(900, 'y')}}};
  ASSERT_TRUE(PatchErofsDir(fd->get(), implicit[1].nid, attributes).ok());
  attributes.xattrs[0].second.resize(1000);
  EXPECT_TRUE(absl::IsResourceExhausted(
      PatchErofsDir(fd->get(), implicit[1].nid, attributes)));
  EXPECT_FALSE(PatchErofsDir(fd->get(), 0, attributes).ok());
  Fsck();
  Mount();
  EXPECT_TRUE(absl::StartsWith(Describe(Mnt())["var/lib"],
                               "41777 7:8 t=1500000000.9 user.x=yyy"));
}

TEST_F(Erofs, NamesThatLeaveAreRefusedAndLinksStayInside) {
  EXPECT_EQ(Write(Tar().Add('0', "../x", "1").Take()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Write(Tar().Add('1', "x", "", "nowhere").Take()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Write(Tar().Add('5', "d").Add('1', "x", "", "d").Take()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Write(Tar().Add('0', "f").Add('0', "f/x").Take()).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Write(Tar().Add('2', "l", "", "l").Add('0', "l/x").Take()).code(),
            absl::StatusCode::kInvalidArgument);
  Compare(
      Tar().Add('2', "out", "", "/../../..").Add('0', "out/in", "x").Take());
}

// Random archives of few names: what replaces what, in every order.
TEST_F(Erofs, RandomArchivesMakeTheSameTree) {
  std::mt19937 random(4711);
  const auto pick = [&](int n) { return static_cast<int>(random() % n); };
  const char* names[] = {"a", "b", "c", "d"};
  for (int round = 0; round < 150 && !HasFailure(); ++round) {
    SCOPED_TRACE(round);
    Tar tar;
    const auto name = [&] {
      std::string out = names[pick(4)];
      while (pick(3) > 0 && out.size() < 8) {
        absl::StrAppend(&out, "/", names[pick(4)]);
      }
      return out;
    };
    const int entries = 2 + pick(12);
    for (int i = 0; i < entries; ++i) {
      tar.mode = 0600 | pick(64);
      tar.mtime = 1500000000 + pick(1000);
      const std::string at = name();
      const size_t slash = at.rfind('/');
      const std::string dir =
          slash == std::string::npos ? "" : at.substr(0, slash + 1);
      switch (pick(9)) {
        case 0:
        case 1:
        case 2:
          tar.Add('0', at, std::string(pick(9000), 'a' + pick(26)));
          break;
        case 3:
        case 4:
          tar.Add('5', at);
          break;
        case 5:
          tar.Add('1', at, "", name());
          break;
        case 6:
          tar.Add('2', at, "", pick(2) ? "/" + name() : "../" + name());
          break;
        case 7:
          tar.Add('0', dir + ".wh." + at.substr(dir.size()));
          break;
        case 8:
          tar.Add('0', dir + ".wh..wh..opq");
          break;
      }
    }
    Compare(tar.Take(), round % 10 == 0);
  }
}

}  // namespace
}  // namespace bulkhead::snapshotter
