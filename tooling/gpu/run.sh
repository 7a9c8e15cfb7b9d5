#!/usr/bin/env bash
# Runs what pack.mjs packed, on a host without network and without Node:
#
#   run.sh [options] tests PACKAGE... [-- VITEST-ARGUMENT...]   the suites of these packages
#   run.sh [options] bench [ARGUMENT...]                        apps/bench
#   run.sh [options] moe-layer [ARGUMENT...]                    apps/moe-layer
#   run.sh [options] node SCRIPT.mjs [ARGUMENT...]              any script; it can import all packages
#
#   --device NAME      what MOE_EP_DEVICE says to the tests (default cuda:0)
#   --out FOLDER       results go there: tests.json, bench.json (with --json; else .txt), output.txt, sanitizer.txt
#   --sanitize TOOL    under compute-sanitizer: memcheck, racecheck, initcheck or synccheck. While it runs each process has a
#                      log in FOLDER/sanitizer-logs; whatever ends the run, they become sanitizer.txt, but for SIGKILL
#                      SANITIZER_ARGUMENTS, of the environment, are its further arguments
#
# The bundle is unpacked once, into a temporary folder that later runs use again.
set -euo pipefail

bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device=cuda:0
out=
sanitizer=

fail() {
  echo "run.sh: $1" >&2
  exit 2
}

while [[ ${1-} == --* ]]; do
  [[ $# -ge 2 ]] || fail "$1 needs a value"
  case $1 in
    --device) device=$2 ;;
    --out) out=$2 ;;
    --sanitize) sanitizer=$2 ;;
    *) fail "unknown option $1" ;;
  esac
  shift 2
done
[[ $# -ge 1 ]] || fail 'say what to run: tests, bench, moe-layer or node'
verb=$1
shift
[[ -z $sanitizer || $sanitizer =~ ^(memcheck|racecheck|initcheck|synccheck)$ ]] || fail "unknown tool $sanitizer"

# The folder's name tells bundles apart, and it gets that name only when it is complete.
work=${TMPDIR:-/tmp}/moe-ep-$(id -u)-$(cat "$bundle"/workspace.tar.xz "$bundle"/node-*.xz | cksum | tr ' ' '-')
if [[ ! -d $work ]]; then
  part=$(mktemp -d "$work.XXXXXX")
  tar -xJf "$bundle/workspace.tar.xz" -C "$part" --no-same-owner
  mkdir "$part/bin"
  xz -dc "$bundle"/node-*.xz >"$part/bin/node"
  chmod +x "$part/bin/node"
  mv -T "$part" "$work" 2>/dev/null || rm -rf "$part"
fi

results=$(mktemp -d)
logs=
# Also where the run is ended from outside, by `timeout` say: what a sanitizer has found until then is what such runs are for.
finish() {
  status=$?
  trap - EXIT INT TERM
  # A part of a pipeline that is ended before it has become its program comes here too, and the logs are not its own.
  [[ $BASHPID == "$$" ]] || exit "$status"
  if [[ -n $logs ]]; then
    summarise
    if grep -q 'SUMMARY: [1-9]' "$out/sanitizer.txt" && [[ $status -eq 0 ]]; then status=99; fi
  fi
  rm -rf "$results"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [[ -n $out ]]; then
  mkdir -p "$out"
  out=$(cd "$out" && pwd)
else
  out=$results
fi

summarise() {
  find "$logs" -type f -exec cat {} + >"$out/sanitizer.txt"
  rm -rf "$logs"
  echo "$sanitizer, summaries of all processes:"
  grep SUMMARY "$out/sanitizer.txt" | sort | uniq -c || echo '  none'
  grep -v 'SUMMARY\|COMPUTE-SANITIZER' "$out/sanitizer.txt" | head -n 80 || true
}

# Some tests have to help initcheck, and ask which sanitizer there is.
export PATH=$work/bin:$PATH MOE_EP_DEVICE=$device MOE_EP_SANITIZER=$sanitizer NO_COLOR=1

prefix=()
if [[ -n $sanitizer ]]; then
  PATH=$PATH:/usr/local/cuda/bin
  command -v compute-sanitizer >/dev/null || fail 'there is no compute-sanitizer'
  # A log for each process: what several say must not be mixed.
  logs=$out/sanitizer-logs
  rm -rf "$logs"
  mkdir "$logs"
  read -ra more <<<"${SANITIZER_ARGUMENTS-}"
  prefix=(compute-sanitizer --tool "$sanitizer" --target-processes all --require-cuda-init no "${more[@]}"
    --log-file "$logs/%p.txt")
fi

status=0
case $verb in
  tests)
    projects=()
    while [[ $# -gt 0 && $1 != -- ]]; do
      projects+=(--project "$1")
      shift
    done
    [[ $# -gt 0 ]] && shift
    [[ ${#projects[@]} -gt 0 ]] || fail 'tests: name packages'
    # A sanitizer slows kernels down a hundred times, and sums up where a process ends by itself: vitest kills its workers'
    # processes, so they are threads here.
    [[ -n $sanitizer ]] && set -- --pool threads --no-file-parallelism --testTimeout 900000 "$@"
    cd "$work"
    "${prefix[@]}" node node_modules/vitest/vitest.mjs run "${projects[@]}" --typecheck.enabled=false \
      --reporter default --reporter ./tooling/vitest/closing-line.mjs \
      --reporter json --outputFile.json "$out/tests.json" "$@" || status=$?
    ;;
  bench)
    kind=txt
    [[ " $* " == *' --json '* ]] && kind=json
    "${prefix[@]}" node "$work/apps/bench/dist/main.js" "$@" | tee "$out/bench.$kind" || status=$?
    ;;
  moe-layer)
    "${prefix[@]}" node "$work/apps/moe-layer/dist/main.js" "$@" | tee "$out/moe-layer.txt" || status=$?
    ;;
  node)
    [[ $# -ge 1 ]] || fail 'node: name a script'
    "${prefix[@]}" node --import "$work/tooling/gpu/bundle-imports.mjs" "$@" | tee "$out/output.txt" || status=$?
    ;;
  *) fail "unknown: $verb" ;;
esac

exit "$status"
