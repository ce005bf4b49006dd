#!/bin/sh
# gen-gomod.sh VERSION (as 1.34.4): write go.mod anew for another Kubernetes release; then run `go mod tidy -e`.
#
# k8s.io/kubernetes is not meant to be imported: its go.mod requires its own libraries as v0.0.0 and replaces them by
# directories of its repository. They are published too, as v0.MINOR.PATCH, so this writes its require list and its
# replace list with those versions. Not every release has all of them published; 1.34.4 has.
set -eu
version=${1:?usage: gen-gomod.sh VERSION (as 1.34.4)}
libraries=v0.${version#1.}
cd "$(dirname "$0")"
upstream=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
{
  echo "module rollbook.test/kube"
  echo
  grep -E '^go ' "$upstream"
  echo
  echo "godebug default=go1.24"
  echo
  echo "require ("
  echo "	k8s.io/kubernetes v$version"
  awk '/^require \(/ {inside = 1; next} /^\)/ {inside = 0} inside' "$upstream" |
    sed -E "s#^(\s*k8s.io/[a-z-]+) v0\.0\.0( .*)?\$#\1 $libraries#; s# // indirect##"
  echo ")"
  echo
  echo "replace ("
  sed -nE "s#^\s*(k8s.io/[a-z-]+) => ./staging/.*#\t\1 => \1 $libraries#p" "$upstream"
  echo ")"
} > go.mod.new
mv go.mod.new go.mod
