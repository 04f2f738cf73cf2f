// SPDX-License-Identifier: Apache-2.0

package resume

// offset is what is known about the number of bytes that a session holds. The
// zero value is unknown.
type offset struct {
	state offsetState
	// bytes is only true while the state is settled.
	bytes int64
}

type offsetState uint8

const (
	// unknown: nothing is sent before the registry was asked for the offset.
	unknown offsetState = iota
	// draining is unknown while an old connection may still deliver bytes: two
	// answers in a row have to agree.
	draining
	// settled: the registry has confirmed the offset, and no break has happened
	// since.
	settled
)

// settledAt is the offset that a registry confirmed.
func settledAt(n int64) offset { return offset{state: settled, bytes: n} }

func (o offset) isSettled() bool { return o.state == settled }

// unsettle forgets the offset. drains: a connection was given up that may still
// deliver bytes. If one was given up before, it may still do so.
func (o *offset) unsettle(drains bool) {
	if drains || o.state == draining {
		*o = offset{state: draining}
	} else {
		*o = offset{state: unknown}
	}
}

// candidates judges the number of bytes that a registry says a session holds. acked
// is the end of the last PATCH that it acknowledged, sent the end of the bytes that
// were handed to any connection.
//
// held is the number that it means: Quay and Gitea count one too many. tries are the
// offsets at which the session may continue, the likeliest first: where the registry
// says that it stands; where ECR and zot, which say less than they acknowledged, have
// acknowledged; and one byte before, where Quay and Gitea are not known yet.
func candidates(said, acked, sent int64, d Dialect) (held int64, tries [maxRefused]int64) {
	held = said
	if said > 0 && (d.OffByOne && said > acked || said == sent+1 && sent > 0) {
		held--
	}
	if held < acked {
		return held, [maxRefused]int64{acked, held, held}
	}
	return held, [maxRefused]int64{held, max(held-1, acked), acked}
}
