#!/bin/bash
# build.sh DIR SUITE: build an arm64 Debian root with the packages that an installation gets from apt. Runs under
# emulation for about three minutes. Needs root, debootstrap and qemu-user-static.
set -eu
root=${1:?usage: build.sh DIR SUITE}
suite=${2:?usage: build.sh DIR SUITE}
# Let the kernel run arm64 programs with qemu. F: the kernel opens qemu now, so it is not needed inside the root.
binfmt=/proc/sys/fs/binfmt_misc
[ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt
if ! grep -qs 'flags:.*F' $binfmt/qemu-aarch64; then
  [ ! -e $binfmt/qemu-aarch64 ] || echo -1 >$binfmt/qemu-aarch64
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf '%s' ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:F" >$binfmt/register
fi
# shellcheck disable=SC2016  # a variable of apt
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/*$')}
export QEMU_CPU=cortex-a72 # the default CPU emulates pointer authentication and is six times slower
packages=python3,python3-numpy,python3-systemd,openssl,ca-certificates
debootstrap --arch arm64 --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
  { tail -20 "$root.log"; exit 1; }
