// Package conntrack tells whether this host resets the uploads that it
// translates (NAT) to a registry, whether it did, and how to stop it.
//
// On a host with DNAT a segment that nf_conntrack calls INVALID is not
// translated. It reaches the host's own stack, which knows no such connection
// and answers with a RST; the sender takes it for its peer's. docs/conntrack.md
// has the whole story.
//
// Reading is done with few privileges and changes nothing; what could not be
// read is Unknown, never absent. Changes are made by Fix and taken back by Undo.
// Linux only: elsewhere every examination is NotApplicable.
package conntrack
