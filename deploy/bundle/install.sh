#!/bin/sh
# Install or update edge-streamer on this Raspberry Pi, from the bundle in this directory. See usage below.
set -eu
umask 022
export TMPDIR=/var/tmp # /tmp may be in memory, and full
started_in=$PWD
cd "$(dirname "$0")"

etc=/etc/edge-streamer
usage() {
  cat <<'TEXT'
usage: sudo ./install.sh [options]

Installs the camera daemon from this bundle, or updates it. It asks for what it cannot know and no option gives. A device
that has settings keeps them, and is asked nothing.

  --device-id NAME       this camera's id at the broker (default: the host name)
  --broker HOST          the MQTT broker
  --port N               its port (default: 8883)
  --ca FILE              the broker's certificate authority (default: the system's authorities)
  --cert FILE --key FILE the device's certificate and private key
  --username NAME --password-file FILE   instead of a certificate, or besides
  --jwks FILE            the backend's public keys
  --settings FILE        a whole settings file, instead of --device-id to --username
  --public-key FILE      accept this bundle, and later ones, only with a signature of this Ed25519 key
  --hardware-watchdog    the board resets itself when systemd hangs
  --upgrade-libcamera    let unattended-upgrades upgrade the camera's packages (default: they are held back)
  --yes                  ask nothing: a missing option is an error

A file may be relative to the directory that the command was started in, or begin with ~/.
Exit status: 0 installed; 1 refused, the last line says why, and the daemon runs as before; 2 wrong option; 3 the new release
did not work, and the device runs as before; 4 the daemon does not run.
TEXT
}

say() { printf '%s\n' "install: $*" >&2; }
die() {
  say "$*"
  exit 1
}

id='' broker='' port='' ca='' cert='' key='' username='' password='' jwks='' settings='' public_key=''
watchdog='' hold=1 ask=1
while [ $# -gt 0 ]; do
  option=$1
  shift
  case $option in
    --device-id | --broker | --port | --ca | --cert | --key | --username | --password-file | --jwks | --settings | --public-key)
      [ $# -gt 0 ] || { say "$option needs a value" && exit 2; }
      value=$1
      shift
      ;;
  esac
  case $option in
    --device-id) id=$value ;;
    --broker) broker=$value ;;
    --port) port=$value ;;
    --ca) ca=$value ;;
    --cert) cert=$value ;;
    --key) key=$value ;;
    --username) username=$value ;;
    --password-file) password=$value ;;
    --jwks) jwks=$value ;;
    --settings) settings=$value ;;
    --public-key) public_key=$value ;;
    --hardware-watchdog) watchdog=1 ;;
    --upgrade-libcamera) hold='' ;;
    --yes) ask='' ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      say "no such option: $option"
      usage >&2
      exit 2
      ;;
  esac
done

# question VARIABLE TEXT [DEFAULT]: ask, unless an option gave it. An empty answer takes the default.
question() {
  eval "known=\$$1"
  [ -z "$known" ] || return 0
  [ -n "$ask" ] || { eval "$1=\${3:-}" && return 0; }
  printf '%s%s: ' "$2" "${3:+ [$3]}" >&2
  # shellcheck disable=SC2034  # read by eval
  read -r answer || die "no answer; see ./install.sh --help for the options"
  eval "$1=\${answer:-\${3:-}}"
}

# file OPTION VARIABLE: make the path absolute, and check that the file can be read.
file() {
  eval "path=\$$2"
  # shellcheck disable=SC2088  # as a person answers
  case $path in
    '' | /*) ;;
    '~/'*) path=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)/${path#'~/'} ;;
    *) path=$started_in/$path ;;
  esac
  [ -z "$path" ] || { [ -f "$path" ] && [ -r "$path" ]; } || die "$1: $path cannot be read"
  eval "$2=\$path"
}

# Ask for the identity of the device, and check it before anything is changed.
ask_for_settings() {
  question id "Device id" "$(hostname)"
  question broker "MQTT broker (host name)"
  [ -n "$broker" ] || die "a broker is needed: --broker HOST"
  question ca "File of the broker's certificate authority (empty: the system's authorities)"
  file --ca ca
  if [ -z "$username" ]; then
    question cert "File of the device's certificate (empty: user and password)"
    file --cert cert
  fi
  if [ -n "$cert" ]; then
    question key "File of its private key"
    file --key key
    [ -n "$key" ] || die "a certificate needs its private key: --key FILE"
  else
    question username "User name at the broker"
    [ -z "$username" ] || question password "File of the password"
  fi
  question jwks "File of the backend's public keys (jwks.json)"
  [ -n "$jwks" ] || die "the backend's public keys are needed: --jwks FILE"
  case $id in *[!A-Za-z0-9_-]* | '') die "--device-id: letters, digits, - and _ only" ;; esac
  case $broker in *[!A-Za-z0-9.:-]*) die "--broker: a host name or an address" ;; esac
  case $port in *[!0-9]*) die "--port: a number" ;; esac
  case $username in *[\"\\]*) die "--username: no quotes and no backslash" ;; esac
}

# A certificate or a key alone must fit the other one, which the device already has.
check_certificate() {
  cert=${cert:-$etc/credentials/device.pem} key=${key:-$etc/credentials/device.key}
  openssl x509 -in "$cert" -noout 2>/dev/null || die "--cert: $cert is not a certificate in PEM"
  openssl x509 -in "$cert" -noout -checkend 0 >/dev/null || die "--cert: $cert has expired: get a new one"
  start=$(openssl x509 -in "$cert" -noout -startdate | cut -d= -f2)
  [ "$(date -d "$start" +%s)" -le "$(date +%s)" ] ||
    die "--cert: $cert is valid from $start, and this device's clock says $(date): set the clock, or get another one"
  own=$(openssl x509 -in "$cert" -noout -pubkey)
  [ "$own" = "$(openssl pkey -in "$key" -passin pass: -pubout 2>/dev/null)" ] || die "--key: $key does not belong to $cert"
}

write_settings() {
  printf '# Written by install.sh. docs/settings.md lists all settings; check: edge-streamer check-config FILE\n'
  printf '[device]\nid = "%s"\n\n[mqtt]\nhost = "%s"\n' "$id" "$broker"
  [ -z "$port" ] || printf 'port = %s\n' "$port"
  [ -z "$ca" ] || printf 'ca_file = "%s/ca.pem"\n' "$etc"
  [ -z "$cert" ] || printf 'cert_file = "credential:device.pem"\nkey_file = "credential:device.key"\n'
  [ -z "$username" ] || printf 'username = "%s"\n' "$username"
  [ -z "$password" ] || printf 'password_file = "credential:mqtt-password"\n'
  printf '\n[auth]\njwks_file = "%s/jwks.json"\n' "$etc"
}

# place FILE MODE TARGET: copy FILE, unless the same is there already. An interruption leaves the old one.
place() {
  [ -n "$1" ] || return 0
  new=${3%/*}/.${3##*/}.new
  if ! cmp -s "$1" "$3"; then install -m "$2" "$1" "$new" && sync "$new" && mv "$new" "$3" && changed=1; fi
}

install_packages() {
  packages="python3-numpy python3-systemd openssl ca-certificates"
  # Only Raspberry Pi OS has it. Other systems have no camera, and use the synthetic one.
  if apt-cache show python3-picamera2 >/dev/null 2>&1; then packages="$packages python3-picamera2"; fi
  missing=
  for package in $packages; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  say "installing by apt:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086  # a list of words
  { apt-get -qq -o DPkg::Lock::Timeout=300 update >&2 &&
    apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends $missing >/dev/null; } ||
    die "these packages are needed and could not be installed:$missing"
}

# Raspberry Pi OS starts the kernel without this, and then the memory limit of the service has no effect.
enable_memory_limit() {
  kernel=/boot/firmware/cmdline.txt
  if [ -f "$kernel" ] && ! grep -q cgroup_enable=memory "$kernel"; then
    sed -i '1s/$/ cgroup_enable=memory/' "$kernel"
    say "the memory limit of the service takes effect after the next reboot"
  fi
}

host_options() {
  mkdir -p /etc/systemd/journald.conf.d /etc/systemd/system.conf.d
  changed=
  place host/journald.conf 644 /etc/systemd/journald.conf.d/edge-streamer.conf
  [ -z "$changed" ] || systemctl restart systemd-journald
  changed=
  [ -z "$watchdog" ] || place host/hardware-watchdog.conf 644 /etc/systemd/system.conf.d/edge-streamer.conf
  [ -z "$changed" ] || systemctl daemon-reexec
  if [ -n "$hold" ]; then
    place host/apt-hold.conf 644 /etc/apt/apt.conf.d/51edge-streamer
  else
    rm -f /etc/apt/apt.conf.d/51edge-streamer
  fi
  enable_memory_limit
}

[ "$(id -u)" = 0 ] || die "only root can install: sudo ./install.sh"
command -v python3 >/dev/null || die "python3 is missing: apt-get install python3"
file --public-key public_key
# Nothing is changed until everything is known to fit.
./edge-release check --without-packages ${public_key:+--public-key "$public_key"} .
file --settings settings
ask_settings=
if [ -z "$settings" ] && [ ! -f "$etc/edge-streamer.toml" ]; then
  ask_settings=1
  ask_for_settings
fi
file --ca ca
file --cert cert
file --key key
file --jwks jwks
file --password-file password
[ -z "$cert$key" ] || check_certificate
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
[ -z "$settings" ] || cat "$settings" >"$fresh"
[ -z "$ask_settings" ] || write_settings >"$fresh"
install_packages
./edge-release install ${public_key:+--public-key "$public_key"} .
release=$(python3 -c 'import json; print(json.load(open("release.json"))["release"])')
if [ -s "$fresh" ]; then
  # The public keys are not in their place yet.
  faults=$(env ${jwks:+"EDGE__AUTH__JWKS_FILE=$jwks"} \
    "/opt/edge-streamer/releases/$release/bin/edge-streamer" check-config "$fresh" 2>&1) ||
    die "the settings are rejected: $faults"
fi

mkdir -p "$etc"
[ -d "$etc/credentials" ] || mkdir -m 700 "$etc/credentials"
place "$public_key" 644 "$etc/release.pub"
place "$ca" 644 "$etc/ca.pem"
place "$jwks" 644 "$etc/jwks.json"
place "$cert" 600 "$etc/credentials/device.pem"
place "$key" 600 "$etc/credentials/device.key"
place "$password" 600 "$etc/credentials/mqtt-password"
host_options

set -- --release "$release"
[ ! -s "$fresh" ] || set -- "$@" --settings "$fresh"
edge-release apply "$@" || exit
say "done. Watch it: systemctl status edge-streamer, journalctl -fu edge-streamer"
say "The technician's page: ssh -L 8081:127.0.0.1:8081 $(id -un 1000 2>/dev/null || echo USER)@$(hostname), then http://localhost:8081/"
