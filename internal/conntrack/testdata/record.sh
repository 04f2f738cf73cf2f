#!/bin/sh
# How testdata was recorded, with the test binary of this package as $1: on this
# kernel as root under unshare -n -m, on others in a virtual machine.
# usage: record.sh TEST_BINARY DIR
set -e
test=$1 dir=$2
rec() { RPUSH_RECORD=$dir RPUSH_RECORD_CASE=$1 $test -test.run 'TestRecord$' -test.v; nft flush ruleset; }
dnat='table ip lab { chain nat { type nat hook prerouting priority -100; tcp dport 5000 dnat to 10.77.2.2:5000; }; }'
ip link set lo up
nft "$dnat"; nft 'table inet filter { chain c { type filter hook input priority 0; iifname "lo" accept; ct state vmap { established : accept, related : accept, invalid : drop }; tcp dport { 22, 5000 } accept; }; }'; rec nft-vmap
nft "$dnat"; nft 'table inet filter { chain c { type filter hook input priority 0; tcp dport { 22, 5000 } accept; ct state invalid drop; }; }'; rec nft-after-accept
nft "$dnat"; nft 'table inet filter { chain c { type filter hook forward priority 0; ct state { invalid, untracked } drop; }; }'; rec nft-forward
nft "$dnat"; nft 'table ip filter { chain c { type filter hook prerouting priority -150; ct state invalid drop; }; }'; rec nft-prerouting
nft "$dnat"; nft 'table ip filter { chain c { type filter hook prerouting priority -300; ct state invalid drop; }; }'; rec nft-raw
nft "$dnat"; nft 'table ip filter { chain c { type filter hook input priority 0; ip saddr 192.0.2.0/24 ct state invalid drop; }; }'; rec nft-source
nft "$dnat"; nft 'table ip filter { chain c { type filter hook input priority 0; limit rate 5/second ct state invalid drop; }; }'; rec nft-limit
nft "$dnat"; nft 'table ip filter { chain c { type filter hook input priority 0; policy drop; ct state established accept; tcp dport 22 accept; }; }'; rec nft-policy
nft 'table ip lab { map m { type inet_service : ipv4_addr . inet_service; elements = { 5000 : 10.77.2.2 . 5000 }; }; chain nat { type nat hook prerouting priority -100; dnat to tcp dport map @m; }; }' || nft 'table ip lab { chain nat { type nat hook prerouting priority -100; dnat to tcp dport map { 5000 : 10.77.2.2 }; }; }'; nft 'table inet firewalld { chain filter_INPUT { type filter hook input priority 10; ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop; jump filter_INPUT_ZONES; reject with icmpx type admin-prohibited; }; chain filter_INPUT_ZONES { tcp dport 5000 accept; }; }' || { nft 'table inet firewalld { chain filter_INPUT_ZONES { tcp dport 5000 accept; }; }'; nft 'table inet firewalld { chain filter_INPUT { type filter hook input priority 10; ct state { established, related } accept; ct status dnat accept; iifname "lo" accept; ct state invalid drop; jump filter_INPUT_ZONES; reject with icmpx type admin-prohibited; }; }'; }; rec firewalld
docker() {
	$1 -t nat -N DOCKER; $1 -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
	$1 -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
	$1 -t nat -A DOCKER -i docker0 -j RETURN; $1 -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 5000 -j DNAT --to-destination 172.17.0.2:5000
}
for i in iptables-nft iptables-legacy; do
	docker $i; $i -N ufw-before-input; $i -A INPUT -j ufw-before-input; $i -A ufw-before-input -i lo -j ACCEPT; $i -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
	$i -N ufw-logging-deny; $i -A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min -j RETURN
	$i -A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny; $i -A ufw-before-input -m conntrack --ctstate INVALID -j DROP; $i -P INPUT DROP
	rec $i-ufw; $i -P INPUT ACCEPT; $i -F; $i -X; $i -t nat -F; $i -t nat -X
	docker $i; $i -N KUBE-FORWARD; $i -A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD; $i -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
	rec $i-kube; $i -F; $i -X; $i -t nat -F; $i -t nat -X
	docker $i; $i -A INPUT -p tcp -m multiport --dports 22,5000:5010 -j ACCEPT; $i -A INPUT -m state --state INVALID,NEW -j DROP
	rec $i-after-accept; $i -F; $i -X; $i -t nat -F; $i -t nat -X
done
# kube-proxy in nftables mode: one key of several values, and a map of verdicts.
nft -f - <<'X'
table ip kube-proxy {
	map ips { typeof ip daddr . meta l4proto . th dport : verdict; }
	set ends { type ipv4_addr . inet_service; flags interval; elements = { 10.77.1.0/24 . 4000-6000 }; }
	chain ep { ip protocol tcp dnat to 10.77.2.2:5000; }
	chain nat { type nat hook prerouting priority -100; ip daddr . meta l4proto . th dport vmap @ips; }
	chain c { type filter hook input priority 0; ip daddr . tcp dport @ends ct state invalid drop; }
}
add element ip kube-proxy ips { 10.77.1.1 . tcp . 5000 : goto ep }
X
rec kube-nft
