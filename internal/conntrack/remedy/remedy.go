// SPDX-License-Identifier: Apache-2.0

// Package remedy plans changes to this host that stop it from resetting uploads,
// applies them, and takes exactly them back. What was done is recorded on disk
// before it is done, so that it can be undone after a kill at any moment.
// Linux only.
package remedy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/rpush-go/rpush/internal/conntrack/rules"
)

// Kind is a way to stop the incident.
type Kind string

// The remedies.
const (
	// Drop is a rule in a table of its own: INVALID packets for the translated
	// ports of this host are dropped.
	Drop Kind = "drop"
	// Liberal is the sysctl: conntrack calls no segment INVALID for its place.
	Liberal Kind = "liberal"
)

// Step is one thing that a Plan does.
type Step struct {
	What    string `json:"what"`
	Command string `json:"command"` // that does the same by hand

	do func(context.Context) error
}

// Plan is what Fix or Undo would do. Nothing is done before Apply.
type Plan struct {
	Steps []Step   `json:"steps"`
	Notes []string `json:"notes"` // what to know before, and what is left alone
	// Refused are parts that somebody else has changed since.
	Refused []string `json:"refused,omitempty"`
	Applied bool     `json:"applied"`

	save      func() error
	forbidden bool
}

// Apply does the steps in order, and stops at the first that fails. What was
// done until then is in the record, so that Undo takes it back.
func (p *Plan) Apply(ctx context.Context) error {
	if p.forbidden && len(p.Steps) > 0 {
		return fmt.Errorf("%s: %w", p.Steps[0].What, fs.ErrPermission)
	}
	for _, s := range p.Steps {
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.What, err)
		}
	}
	p.Applied = true
	if p.save != nil {
		return p.save()
	}
	return nil
}

// What keeps a plan from being made.
var (
	ErrNoPorts    = errors.New("no translated port is known, for which the rule could be narrow: name the registry")
	ErrForeign    = errors.New("there is a table inet rpush that rpush doctor has no record of")
	ErrEdited     = errors.New("somebody has changed it since")
	ErrNoPersist  = errors.New("how this system keeps such a setting over a reboot is not known")
	ErrNamespace  = errors.New("a network namespace of its own ends before a reboot: --persist is for the machine's")
	ErrOtherPlace = errors.New("it was done in another network namespace")
	ErrRecord     = errors.New("the record of what was done cannot be used")
)

const (
	comment = "rpush doctor --undo takes this back"

	// Where things are kept.
	recordFile  = "var/lib/rpush/doctor-undo.json"
	dropFile    = "etc/rpush/conntrack-drop.nft"
	unitName    = "rpush-conntrack.service"
	unitFile    = "etc/systemd/system/" + unitName
	sysctlFile  = "etc/sysctl.d/90-rpush-conntrack.conf"
	modulesFile = "etc/modules-load.d/rpush-conntrack.conf"
)

// dropScript is for nft -f. It replaces the table, or makes it, at once.
func dropScript(ports []rules.PortRange) string {
	return fmt.Sprintf(`table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	chain input {
		type filter hook input priority -1; policy accept;
		tcp dport { %[2]s } ct state invalid counter drop comment "%[3]s"
	}
}
`, rules.OwnTable, rules.JoinPorts(ports), comment)
}

func unit(nft string) string {
	return fmt.Sprintf(`# Written by rpush doctor --fix=drop --persist; rpush doctor --undo takes it back.
[Unit]
Description=Drop INVALID packets for translated registry ports
After=network-pre.target nftables.service firewalld.service ufw.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%[1]s -f /%[2]s
ExecReload=%[1]s -f /%[2]s
ExecStop=%[1]s delete table inet %[3]s

[Install]
WantedBy=multi-user.target
`, nft, dropFile, rules.OwnTable)
}

const (
	sysctlConf = `# Written by rpush doctor --fix=liberal --persist; rpush doctor --undo takes it back.
net.netfilter.nf_conntrack_tcp_be_liberal = 1
`
	modulesConf = `# Written by rpush doctor --fix=liberal --persist: the setting is there only with the module.
nf_conntrack
`
)
