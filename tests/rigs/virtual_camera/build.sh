#!/bin/bash
# build.sh DIR: a Debian 13 root with libcamera's virtual camera and the real picamera2, installed for the whole system as
# apt does on a Raspberry Pi. Needs root and debootstrap; about a minute and a half, and 1.2 GB.
set -eu
root=${1:?usage: build.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
# the mirror that this machine's own apt uses
# shellcheck disable=SC2016  # apt's own variable
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/*$')}
debootstrap --variant=minbase --include=ca-certificates trixie "$root" "$mirror"
printf 'Types: deb\nURIs: %s\nSuites: trixie trixie-updates trixie-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' "$mirror" >"$root/etc/apt/sources.list.d/debian.sources"
rm -f "$root/etc/apt/sources.list"
mkdir -p "$root/usr/local/share/ca-certificates" "$root/edge"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/pip.conf "$root/etc/pip.conf" 2>/dev/null || true
inside() { "$here/inside.sh" "$root" "$@"; }
inside update-ca-certificates
inside apt-get update -qq
# trixie's own libcamera 0.4.0-7 runs the virtual camera at 20 fps and hangs on two streams: take backports
inside apt-get install -y -qq --no-install-recommends -t trixie-backports python3-libcamera libcamera-ipa python3-av
inside apt-get install -y -qq --no-install-recommends python3-pip python3-numpy python3-pil python3-prctl python3-systemd \
  python3-tqdm python3-jsonschema libarchive13t64 gcc libc6-dev python3-dev pkg-config libsystemd-dev mosquitto
inside pip install -q --no-cache-dir --break-system-packages --root-user-action=ignore picamera2==0.3.38
inside apt-get clean
rm -rf "$root"/var/lib/apt/lists/*
install -D -m 644 "$here/virtual.yaml" "$root/usr/share/libcamera/pipeline/virtual/virtual.yaml"
packages=$(echo "$root"/usr/local/lib/python3.*/dist-packages)
install -m 644 -t "$packages" "$here/picamvirt.py" "$here/pykms.py"
echo 'import picamvirt' >"$packages/picamvirt.pth"
