// SPDX-License-Identifier: Apache-2.0

// Package conntrack tells whether this host resets the uploads that it
// translates (NAT) to a registry, whether it did, and how to stop it.
//
// On a host with DNAT a segment that nf_conntrack calls INVALID is not
// translated. It reaches the host's own stack, which knows no such connection
// and answers with a RST; the sender takes it for its peer's. docs/conntrack.md
// has the whole story.
//
// Reading is done with few privileges and changes nothing; what could not be
// read is Unknown, never absent. Linux only: elsewhere every examination is
// NotApplicable.
//
// The package examines and concludes. Below it are host, which reads the machine;
// nft and xtables, which read its rules; rules, which follows a packet through
// them; selftest, which rebuilds the incident; and remedy, which makes changes
// and takes them back.
package conntrack
