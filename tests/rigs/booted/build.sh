#!/bin/bash
# build.sh DIR SUITE [PACKAGES]: a Debian root that boots systemd and that is reached by ssh, like a Raspberry Pi OS Lite that was just
# flashed: a user pi with sudo, nothing of the project; PACKAGES are there, too. Needs root and debootstrap; 40 seconds and 400 MB.
set -eu
root=${1:?usage: build.sh DIR SUITE [PACKAGES]}
suite=${2:?usage: build.sh DIR SUITE [PACKAGES]}
# the mirror that this machine's own apt uses
# shellcheck disable=SC2016  # apt's own variable
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/*$')}
packages=systemd,systemd-sysv,dbus,libpam-systemd,udev,python3,python3-apt,iproute2,procps,sudo,openssh-server,openssl
debootstrap --variant=minbase --include="$packages,ca-certificates,zstd" "$suite" "$root" "$mirror" >"$root.log" 2>&1 ||
  { tail -20 "$root.log"; exit 1; }
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp /etc/resolv.conf "$root/etc/resolv.conf"
chroot "$root" env DEBIAN_FRONTEND=noninteractive PACKAGES="${3:-}" sh -eu <<'SH'
apt-get -qq update
[ -z "$PACKAGES" ] || apt-get -qq install -y --no-install-recommends $PACKAGES >/dev/null
useradd -m -s /bin/bash -G sudo pi
echo 'pi ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/010_pi-nopasswd
ssh-keygen -q -A
systemctl enable ssh >/dev/null 2>&1
# What a container has no hardware or rights for.
systemctl mask systemd-networkd-wait-online.service systemd-udev-settle.service >/dev/null 2>&1
mkdir -p /boot/firmware
echo 'console=tty1 root=PARTUUID=00000000-02 rootwait' >/boot/firmware/cmdline.txt
echo 'camera_auto_detect=1' >/boot/firmware/config.txt
rm -f /etc/machine-id && touch /etc/machine-id
SH
rm -f "$root/etc/hostname"
mkdir -p "$root/home/pi/.ssh" "$root/root/.ssh"
ssh-keygen -q -t ed25519 -N '' -C tests -f "$root/ssh-key"
cp "$root/ssh-key.pub" "$root/home/pi/.ssh/authorized_keys"
cp "$root/ssh-key.pub" "$root/root/.ssh/authorized_keys"
chroot "$root" chown -R pi:pi /home/pi/.ssh
chmod 700 "$root/home/pi/.ssh" "$root/root/.ssh"
