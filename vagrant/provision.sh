#!/bin/sh
# Make a machine of the lab what its name says. Vagrant runs it as root; any number of times: what is there stays.
set -eu

name=$1
checkout=/opt/jvpn
wheels=/opt/jvpn-wheels

say() { printf 'provision: %s\n' "$*"; }

hostnamectl set-hostname "$name"
grep -q " $name\$" /etc/hosts || echo "127.0.1.1 $name" >>/etc/hosts

# A box of box/build brings packages, wheels and environment; then nothing here needs the internet.
if [ -d "$wheels" ]; then
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$wheels
fi
"$checkout/script/setup"
ln -sf "$checkout/.venv/bin/jvpn" /usr/local/bin/jvpn

# `jvpn lab` runs everything as root, over one connection; without PAM a command costs no session of logind's.
install -d -m 700 /root/.ssh
install -m 600 /home/vagrant/.ssh/authorized_keys /root/.ssh/authorized_keys
printf 'PermitRootLogin prohibit-password\nMaxSessions 100\nUseDNS no\nUsePAM no\n' >/etc/ssh/sshd_config.d/jvpn-lab.conf
# Without PAM an account that has no password is closed to keys too, unless it says so by a star.
case $(passwd --status vagrant) in
*' L '*) usermod --password '*' vagrant ;;
esac
systemctl reload ssh.service

if [ "$name" = router ]; then
    printf 'sch_netem\nifb\nact_mirred\nsch_ingress\nnf_tables\n' >/etc/modules-load.d/jvpn-lab.conf
    # Boxes' kernels differ: without netem it is better known now than by a scenario.
    modprobe --all sch_netem ifb act_mirred sch_ingress nf_tables numifbs=0 2>/dev/null ||
        modprobe --all sch_netem ifb act_mirred sch_ingress nf_tables ||
        say 'this kernel lacks modules that faults need (netem, ifb): install linux-image-amd64 or linux-image-cloud-amd64'
fi

cat >/etc/systemd/system/jvpn-lab-network.service <<END
[Unit]
Description=Interfaces of the lab
After=network.target

[Service]
Type=oneshot
RemainAfterExit=yes
WorkingDirectory=$checkout
ExecStart=/usr/bin/python3 -m vagrant.network $name

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl --quiet enable jvpn-lab-network.service
systemctl restart jvpn-lab-network.service
say "$name: $(uname -r), $(ip -brief -4 address show scope global | awk '{ printf "%s %s  ", $1, $3 }')"
