#include "tests/conformance/snapshots_steps.h"

namespace bulkhead::conformance {

void SnapshotLifecycle(Transcript& t, const std::string& snapshotter) {
  SnapshotsClient c(t, snapshotter);
  c.Prepare("prepare", "a", "",
            {{kRoot, "x"},
             {"user", "u"},
             {"empty", ""},
             {"containerd.io/snapshot/overlay.x", "kept"}});
  c.Prepare("prepare-again", "a");
  c.View("view-again", "a");
  c.Stat("stat-active", "a");
  c.Mounts("mounts-active", "a");
  c.Prepare("on-active", "b", "a");
  c.View("view-on-active", "b", "a");
  c.Prepare("no-parent", "b", "none");
  c.View("view-no-parent", "b", "none");
  c.Prepare("no-key", "");
  c.Commit("commit-none", "n", "none");
  c.Commit("commit-no-name", "", "a");
  c.Commit("commit", "layer 1", "a");
  c.Stat("stat-gone", "a");
  c.Stat("stat-committed", "layer 1");
  c.Mounts("mounts-committed", "layer 1");
  c.Mounts("mounts-none", "none");
  c.Commit("commit-committed", "n", "layer 1");
  c.Prepare("a-again", "a", "layer 1");
  c.Commit("commit-name-taken", "layer 1", "a");
  c.View("view", "v", "layer 1");
  c.Stat("stat-view", "v");
  c.Mounts("mounts-view", "v");
  c.Commit("commit-view", "n", "v");
  c.View("view-empty", "ve");
  c.Mounts("mounts-view-empty", "ve");
  c.Remove("remove-parent", "layer 1");
  c.Commit("commit-2", "layer/2", "a", {{kRoot, "x"}, {"l", "2"}});
  c.Prepare("prepare-3", "c", "layer/2");
  c.Mounts("mounts-3", "c");
  c.View("view-3", "v3", "layer/2");
  c.Mounts("mounts-view-3", "v3");
  for (const char* key : {"c", "layer 1", "layer/2", "v", "none"}) {
    c.Usage(std::string("usage-") + key, key);
  }
  c.Update("update-one", "c", {"labels.x.y"}, {{"x.y", "z"}, {"no", "n"}});
  c.Update("update-delete", "c", {"labels.x.y"}, {});
  c.Update("update-labels", "c", {"labels"}, {{kRoot, "1"}, {"e", ""}});
  c.Update("update-nomask", "c", {}, {{kRoot, "2"}, {"l", "3"}});
  c.Update("update-kind", "c", {"kind"}, {});
  c.Update("update-parent", "c", {"parent"}, {});
  c.Update("update-none", "none", {"labels.x"}, {{"x", "y"}});
  c.Update("update-long", "c", {"labels.x"}, {{"x", std::string(5000, 'y')}});
  c.Prepare("label-too-long", "long", "", {{"x", std::string(5000, 'y')}});
  c.List("list", {});
  c.List("list-empty-filter", {""});
  c.List("list-kind", {"kind==committed"});
  c.List("list-two", {"kind==view", "name==c"});
  c.List("list-parent", {"parent==\"layer 1\",kind!=view"});
  c.List("list-label", {"labels.l"});
  c.List("list-bad", {"kind="});
  c.List("list-no-ns", {}, "-");
  c.List("list-other-ns", {}, t.ns() + "x");
  c.Remove("remove-none", "none");
  c.Remove("remove-mid", "layer/2");
  for (const char* key : {"c", "v3", "v", "ve", "layer/2", "layer 1"}) {
    c.Remove(std::string("remove-") + key, key);
  }
  c.List("list-end", {});
  c.Cleanup("cleanup");
}

}  // namespace bulkhead::conformance
