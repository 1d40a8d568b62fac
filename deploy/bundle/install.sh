#!/bin/sh
# Install or update edge-streamer on this Raspberry Pi, from the bundle that this file lies in. See usage below.
set -eu
cd "$(dirname "$0")"

etc=/etc/edge-streamer
usage() {
  cat <<'TEXT'
usage: sudo ./install.sh [options]

Installs the camera daemon from this bundle, or updates it. It asks for what it cannot know, unless an option says it or
the device has it already. A device that has settings keeps them.

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
  --yes                  ask nothing: what is missing is an error

Exit status: 0 installed; 1 nothing changed, the last line says why; 2 wrong option; 3 the new release did not work, and the
device runs as before; 4 the daemon does not run.
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

# question VARIABLE TEXT [DEFAULT]: ask, unless an option said it. An empty answer takes the default.
question() {
  eval "known=\$$1"
  [ -z "$known" ] || return 0
  [ -n "$ask" ] || { eval "$1=\${3:-}" && return 0; }
  printf '%s%s: ' "$2" "${3:+ [$3]}" >&2
  # shellcheck disable=SC2034  # read by eval
  read -r answer || die "no answer; see ./install.sh --help for the options"
  eval "$1=\${answer:-\${3:-}}"
}

readable() { [ -z "$2" ] || [ -r "$2" ] || die "$1: $2 cannot be read"; }

# The identity of the device, checked before anything is put in place.
ask_for_settings() {
  question id "Device id" "$(hostname)"
  question broker "MQTT broker (host name)"
  [ -n "$broker" ] || die "a broker is needed: --broker HOST"
  question ca "File of the broker's certificate authority (empty: the system's authorities)"
  if [ -z "$username" ]; then
    question cert "File of the device's certificate (empty: user and password)"
  fi
  if [ -n "$cert" ]; then
    question key "File of its private key"
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
  readable --ca "$ca" && readable --cert "$cert" && readable --key "$key" && readable --jwks "$jwks"
  readable --password-file "$password"
  if [ -n "$cert" ]; then check_certificate; fi
}

check_certificate() {
  openssl x509 -in "$cert" -noout 2>/dev/null || die "--cert: $cert is not a certificate in PEM"
  openssl x509 -in "$cert" -noout -checkend 0 >/dev/null || die "--cert: $cert has expired: get a new one"
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

# place FILE MODE TARGET: copy FILE, unless it is there already.
place() {
  [ -n "$1" ] || return 0
  if ! cmp -s "$1" "$3"; then install -m "$2" "$1" "$3" && changed=1; fi
}

install_packages() {
  packages="python3-numpy python3-systemd openssl ca-certificates"
  # Raspberry Pi OS has it; elsewhere there is no camera, and the synthetic one serves.
  if apt-cache show python3-picamera2 >/dev/null 2>&1; then packages="$packages python3-picamera2"; fi
  missing=
  for package in $packages; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
  done
  [ -n "$missing" ] || return 0
  say "installing by apt:$missing"
  export DEBIAN_FRONTEND=noninteractive
  # shellcheck disable=SC2086  # a list of words
  { apt-get -qq update >&2 && apt-get -qq install -y --no-install-recommends $missing >/dev/null; } ||
    die "these packages are needed and could not be installed:$missing"
}

# The memory limit of the service has no effect where the kernel was started without this, as on Raspberry Pi OS.
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
readable --public-key "$public_key"
# In the order in which something changes: nothing of the device, until all is known to fit.
./edge-release check --without-packages ${public_key:+--public-key "$public_key"} .
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
if [ -n "$settings" ]; then
  readable --settings "$settings"
  cat "$settings" >"$fresh"
elif [ ! -f "$etc/edge-streamer.toml" ]; then
  ask_for_settings
  write_settings >"$fresh"
fi
readable --cert "$cert" && readable --key "$key"
if [ -n "$cert" ] && [ -n "$key" ]; then check_certificate; fi
install_packages
./edge-release install ${public_key:+--public-key "$public_key"} .

mkdir -p "$etc"
[ -d "$etc/credentials" ] || mkdir -m 700 "$etc/credentials"
changed=
place "$public_key" 644 "$etc/release.pub"
place "$ca" 644 "$etc/ca.pem"
place "$jwks" 644 "$etc/jwks.json"
place "$cert" 600 "$etc/credentials/device.pem"
place "$key" 600 "$etc/credentials/device.key"
place "$password" 600 "$etc/credentials/mqtt-password"
restart=${changed:+--restart}
host_options

release=$(python3 -c 'import json; print(json.load(open("release.json"))["release"])')
set -- --release "$release"
[ ! -s "$fresh" ] || set -- "$@" --settings "$fresh"
status=0
# shellcheck disable=SC2086  # one word or none
edge-release apply "$@" $restart || status=$?
[ "$status" = 0 ] || exit "$status"
say "done. Watch it: systemctl status edge-streamer, journalctl -fu edge-streamer"
say "The technician's page: ssh -L 8081:127.0.0.1:8081 $(id -un 1000 2>/dev/null || echo USER)@$(hostname), then http://localhost:8081/"
