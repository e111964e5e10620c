# In the new root: what the tests and the engines need, and a newer kernel from the release's own backports, wherever the release itself came from.
export DEBIAN_FRONTEND=noninteractive
sed -n 's/ bookworm / bookworm-backports /p' /etc/apt/sources.list > /etc/apt/sources.list.d/backports.list
apt-get update
apt-get install -y --no-install-recommends \
    apparmor bubblewrap busybox-static containernetworking-plugins crun dbus dbus-user-session docker.io e2fsprogs fuse-overlayfs git initramfs-tools \
    iproute2 iptables kmod libpam-systemd openssl podman procps python3-minimal rootlesskit slirp4netns strace systemd-sysv uidmap zstd
apt-get install -y --no-install-recommends -t bookworm-backports linux-image-cloud-amd64

# An ordinary user whose manager runs without a login and is given every controller.
useradd --create-home --uid 1000 worker
mkdir -p /var/lib/systemd/linger /etc/systemd/system/user@.service.d
touch /var/lib/systemd/linger/worker
printf '[Service]\nDelegate=cpu memory pids\n' > /etc/systemd/system/user@.service.d/delegate.conf

# Nothing else starts by itself: engines are the tests' own.
systemctl mask docker.service docker.socket containerd.service podman.service podman.socket podman-restart.service podman-auto-update.timer \
    serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer systemd-timesyncd.service networking.service
mkdir -p /tests
printf '/dev/vdb /tests ext4 ro 0 0\ntmp /tmp tmpfs mode=1777,size=2g 0 0\n' > /etc/fstab
cat > /etc/systemd/system/tests.service << 'END'
[Unit]
After=multi-user.target user@1000.service
RequiresMountsFor=/tests /tmp
[Service]
Type=idle
ExecStart=/bin/sh /tests/parts.sh
ExecStopPost=/bin/systemctl poweroff --force --force
StandardOutput=file:/dev/ttyS0
StandardError=file:/dev/ttyS0
TimeoutStartSec=infinity
[Install]
WantedBy=multi-user.target
END
systemctl enable tests.service
