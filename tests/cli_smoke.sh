#!/bin/sh
# Exercises the command line against a running suite: one line a check, "ok
# <what>" or "FAIL <what>"; exits 1 if anything failed.
#
#   BULKHEAD_ADDRESS=/run/bulkhead/bulkhead.sock tests/cli_smoke.sh IMAGE
#
# IMAGE (default busybox) must be pulled already and have a shell. BULKHEAD
# names the program (default: bulkhead on $PATH). Leaves nothing behind.
set -u

image=${1:-busybox}
bulkhead=${BULKHEAD:-bulkhead}
tag="smoke-$$"
failed=0
temp=$(mktemp -d /tmp/bh-smoke-XXXXXX)

b() { "$bulkhead" "$@"; }

cleanup() {
  for c in $(b ps -aq --filter "name=$tag" 2>/dev/null); do
    b rm -f "$c" >/dev/null 2>&1
  done
  rm -rf "$temp"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

ok() { echo "ok $1"; }
bad() {
  echo "FAIL $1 (got: $2)"
  failed=1
}
# same WHAT WANTED GOT
same() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1" "$3, wanted: $2"; fi; }
# has WHAT TEXT GOT
has() {
  case $3 in
  *"$2"*) ok "$1" ;;
  *) bad "$1" "$3, wanted: $2" ;;
  esac
}
# code WHAT WANTED COMMAND...: the exit code.
code() {
  what=$1 wanted=$2
  shift 2
  "$@" >"$temp/out" 2>&1 </dev/null
  got=$?
  if [ "$got" = "$wanted" ]; then ok "$what"; else
    bad "$what" "$got: $(head -c 300 "$temp/out"), wanted: $wanted"
  fi
}
# until WHAT SECONDS COMMAND...: repeats until it succeeds.
until_ok() {
  what=$1 tries=$(($2 * 10))
  shift 2
  while [ $tries -gt 0 ]; do
    if "$@" >/dev/null 2>&1; then
      ok "$what"
      return
    fi
    tries=$((tries - 1))
    sleep 0.1
  done
  bad "$what" "timed out"
}

# --- the suite
code "version answers" 0 b version
code "info answers" 0 b info
has "images lists the image" "$(echo "$image" | sed 's/:.*//; s|.*/||')" "$(b images)"
code "inspect of an image" 0 b inspect "$image"

# --- foreground
same "run prints the output" "hello" "$(b run --rm "$image" echo hello)"
same "run keeps stderr apart" "" "$(b run --rm "$image" sh -c 'echo e >&2' 2>/dev/null)"
same "run prints stderr" "e" "$(b run --rm "$image" sh -c 'echo e >&2' 2>&1)"
code "run returns the exit code" 7 b run --rm "$image" sh -c 'exit 7'
code "run of a signalled process" 143 b run --rm "$image" sh -c 'sh -c "kill -TERM \$\$"; exit $?'
code "a missing command is 127" 127 b run --rm "$image" /no/such/command
code "a command that is no program is 126" 126 b run --rm "$image" /etc
code "an unknown image is 125" 125 b run --rm --pull never no/such:image true
code "a bad flag is 125" 125 b run --no-such-flag "$image" true
same "run -i passes standard input" "piped" "$(echo piped | b run --rm -i "$image" cat)"
same "large input arrives whole" "3000000" \
  "$(head -c 3000000 /dev/zero | b run --rm -i "$image" wc -c)"
same "large output arrives whole" "3000000" \
  "$(b run --rm "$image" sh -c 'head -c 3000000 /dev/zero' | wc -c)"
same "-e sets a variable" "v" "$(b run --rm -e K=v "$image" sh -c 'echo $K')"
printf '# c\nA=1\nB=two words\n' >"$temp/env"
same "--env-file sets variables" "1 two words" \
  "$(b run --rm --env-file "$temp/env" "$image" sh -c 'echo $A $B')"
same "-w sets the folder" "/tmp" "$(b run --rm -w /tmp "$image" sh -c pwd)"
same "-u sets the user" "1234:567" \
  "$(b run --rm -u 1234:567 "$image" sh -c 'echo $(id -u):$(id -g)')"
same "--hostname" "boat" "$(b run --rm --hostname boat "$image" hostname)"
same "--entrypoint" "x" "$(b run --rm --entrypoint echo "$image" x)"
echo data >"$temp/file"
same "-v binds" "data" "$(b run --rm -v "$temp:/mnt:ro" "$image" cat /mnt/file)"
code "-v ro is read-only" 1 b run --rm -v "$temp:/mnt:ro" "$image" touch /mnt/x
same "--mount binds" "data" \
  "$(b run --rm --mount "type=bind,src=$temp,dst=/m" "$image" cat /m/file)"
code "--read-only" 1 b run --rm --read-only "$image" touch /x
code "--tmpfs is writable" 0 b run --rm --read-only --tmpfs /t "$image" touch /t/x
has "--network none has only loopback" "lo" "$(b run --rm "$image" cat /proc/net/dev)"
same "-t gives a terminal" "yes" \
  "$(b run --rm -t "$image" sh -c '[ -t 1 ] && echo yes' | tr -d '\r')"

# --- confinement
has "seccomp is on" "2" "$(b run --rm "$image" grep Seccomp: /proc/self/status)"
has "fourteen capabilities" "00000000a80425fb" \
  "$(b run --rm "$image" grep CapEff /proc/self/status)"
has "--cap-drop ALL" "0000000000000000" \
  "$(b run --rm --cap-drop ALL "$image" grep CapEff /proc/self/status)"
has "no-new-privileges" "1" \
  "$(b run --rm --security-opt no-new-privileges "$image" grep NoNewPrivs /proc/self/status)"
code "/proc/sys is read-only" 1 b run --rm "$image" sh -c 'echo 1 >/proc/sys/kernel/panic'
same "/proc/interrupts is masked" "0" "$(b run --rm "$image" sh -c 'wc -c </proc/interrupts')"
code "mounting is refused" 1 b run --rm "$image" sh -c 'mount -t tmpfs x /tmp || exit 1'

# --- background
id=$(b run -d --name "$tag-web" --label "smoke=$tag" "$image" \
  sh -c 'trap "exit 3" TERM; echo first; while :; do sleep 0.1; done')
same "run -d prints an id" 64 "$(printf %s "$id" | wc -c)"
has "ps shows it" "$tag-web" "$(b ps)"
same "ps by label" "$(echo "$id" | cut -c1-12)" "$(b ps -q --filter "label=smoke=$tag")"
same "ps --format" "$tag-web" "$(b ps --filter "name=$tag-web" --format '{{.Names}}')"
code "the name is taken" 125 b run -d --name "$tag-web" "$image" true
same "inspect --format" "running" "$(b inspect -f '{{.State.Status}}' "$tag-web")"
same "a short id is enough" "$id" \
  "$(b inspect -f '{{.Id}}' "$(echo "$id" | cut -c1-6)")"
same "exec prints the output" "in" "$(b exec "$tag-web" echo in)"
code "exec returns the exit code" 5 b exec "$tag-web" sh -c 'exit 5'
code "exec of a missing command is 127" 127 b exec "$tag-web" /no/such
same "exec -i passes standard input" "typed" "$(echo typed | b exec -i "$tag-web" cat)"
same "exec -u" "12" "$(b exec -u 12 "$tag-web" id -u)"
same "exec -e" "w" "$(b exec -e Z=w "$tag-web" sh -c 'echo $Z')"
first() { b logs "$tag-web" | grep -qx first; }
until_ok "logs has the output" 5 first
code "logs --tail 0" 0 b logs --tail 0 "$tag-web"
has "top lists processes" "sleep" "$(b top "$tag-web")"
has "stats shows it" "$tag-web" "$(b stats --no-stream)"
code "pause" 0 b pause "$tag-web"
same "it is paused" "paused" "$(b inspect -f '{{.State.Status}}' "$tag-web")"
code "exec in a paused container fails" 1 b exec "$tag-web" true
code "unpause" 0 b unpause "$tag-web"
code "rm of a running container fails" 1 b rm "$tag-web"
code "stop" 0 b stop -t 5 "$tag-web"
same "stop used the signal" "3" "$(b inspect -f '{{.State.ExitCode}}' "$tag-web")"
has "ps -a says exited" "Exited (3)" "$(b ps -a --filter "name=$tag-web")"
same "wait tells the exit code" "3" "$(b wait "$tag-web")"
code "exec in a stopped container fails" 1 b exec "$tag-web" true
code "start again" 0 b start "$tag-web"
code "restart" 0 b restart -t 1 "$tag-web"
same "it runs again" "running" "$(b inspect -f '{{.State.Status}}' "$tag-web")"
code "kill" 0 b kill "$tag-web"
same "killed is 137" "137" "$(b wait "$tag-web")"
code "rm" 0 b rm "$tag-web"
code "it is gone" 1 b inspect "$tag-web"

# --- create, start, logs -f, --rm
code "create" 0 b create --name "$tag-made" "$image" sh -c 'echo made; exit 4'
same "create does not start" "created" "$(b inspect -f '{{.State.Status}}' "$tag-made")"
code "start -a returns the exit code" 4 b start -a "$tag-made"
code "rm of a created container" 0 b rm "$tag-made"
b run -d --name "$tag-count" "$image" sh -c 'for i in 1 2 3; do echo $i; sleep 0.2; done' >/dev/null
same "logs -f follows to the end" "1 2 3" "$(b logs -f "$tag-count" | tr '\n' ' ' | sed 's/ $//')"
same "logs --tail" "3" "$(b logs --tail 1 "$tag-count")"
code "rm of an ended container" 0 b rm "$tag-count"
b run -d --rm --name "$tag-gone" "$image" true >/dev/null
gone() { ! b inspect "$tag-gone"; }
until_ok "run -d --rm removes it" 10 gone
b run -d --name "$tag-force" "$image" sleep 1000 >/dev/null
code "rm -f" 0 b rm -f "$tag-force"
same "no container is left" "" "$(b ps -aq --filter "name=$tag")"

exit $failed
