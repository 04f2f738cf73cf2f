// SPDX-License-Identifier: Apache-2.0

package rules

import "testing"

func TestPortRange(t *testing.T) {
	for s, ok := range map[string]bool{"5000": true, "5000-5010": true, "": false, "0": false, "5-4": false, "1-65536": false, "1;flush": false, "-1": false, "5-": false} {
		var r PortRange
		if err := r.UnmarshalText([]byte(s)); (err == nil) != ok || ok && r.String() != s {
			t.Errorf("%q: got %v, %v", s, r, err)
		}
	}
	if got := JoinPorts(Union([]PortRange{{5001, 5001}, {5000, 5000}}, []PortRange{{7000, 7010}, {7005, 7020}, {5000, 5000}})); got != "5000, 5001, 7000-7020" {
		t.Errorf("got %s", got)
	}
}

func TestOwner(t *testing.T) {
	for want, c := range map[string]Chain{
		"kube-proxy": {Name: "KUBE-FORWARD"}, "Calico": {Name: "cali-fw-eth0"}, "ufw": {Name: "ufw-before-input"},
		"firewalld": {Table: "firewalld", Name: "filter_INPUT"}, "Docker": {Name: "DOCKER"}, "rpush": {Table: OwnTable, Name: "input"}, "": {Name: "INPUT"},
	} {
		if got := owner(&c); got != want {
			t.Errorf("%s: got %q, want %q", c.Name, got, want)
		}
	}
}
