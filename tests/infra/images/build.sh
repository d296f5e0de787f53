#!/usr/bin/env bash
# Build the images of `make cluster-test`; what is built stays, and is only looked at again.
set -euo pipefail
cd "$(dirname "$0")"
root=$(git rev-parse --show-toplevel)
for program in podman runc mmdebstrap; do
	command -v $program >/dev/null || { echo "error: no $program: make services" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
. ./settings.sh "$work"
build() { podman build --quiet --net=host -t "localhost/$1" "${@:2}"; }

if ! podman image exists localhost/gliotrail-base; then
	mmdebstrap --variant=minbase --include=ca-certificates,python3.11,python3.11-venv,python3-pip \
		bookworm "$work/base.tar"
	podman import --quiet "$work/base.tar" localhost/gliotrail-debian
	rm "$work/base.tar"
	cp -r base "$work/base"
	cp /etc/ssl/certs/ca-certificates.crt "$work/base/" # this machine's authorities
	build gliotrail-base "$work/base"
fi
mkdir -p "$work/index/torch" "$work/weed"
"$root/.venv/bin/python" -m pip download --quiet --no-deps --dest "$work/index/torch" torch==2.13.0
for wheel in "$work"/index/torch/*.whl; do
	name=$(basename "$wheel")
	echo "<a href=\"${name//+/%2B}\">$name</a>" >>"$work/index/torch/index.html"
done
build gliotrail:cpu --target cpu -f "$root/infra/compose/Dockerfile" -v "$work/index:/index:ro" \
	--build-arg BASE=localhost/gliotrail-base --build-arg CPU_INDEX=file:///index "$root"
build postgres:17.6-bookworm postgres
build haproxy:3.2.8-alpine haproxy
cp weed/Containerfile "$root/.venv/bin/weed" "$work/weed/"
build chrislusf/seaweedfs:4.48 "$work/weed"
build gliotrail-slurm slurm
