// SPDX-License-Identifier: Apache-2.0

package resume

import "context"

// origin is where the bytes of an upload come from, and what that allows the upload
// to do: a blob of our own, or a request of another client that is forwarded.
type origin interface {
	// begin is the first step if there is no record to continue from. It returns the
	// step after it, also if it fails. It is called once.
	begin(ctx context.Context, u *upload) (step, error)
	// isForwarded reports whether the upload is another client's: its connections may
	// be that client's, and the client has asked for the blob by itself.
	isForwarded() bool
	// isRanged reports whether even a PATCH that holds all of the body needs a
	// Content-Range.
	isRanged() bool
	// commits reports whether the upload ends with a commit. If not, it ends when the
	// registry holds the bytes.
	commits() bool
	// knowsSize reports whether the size of the blob is certain.
	knowsSize() bool
	// firstOffset is the least offset in the session that can be sent again.
	firstOffset() int64
	// replaceSession is nil if the blob can be sent again in another session. If not,
	// it is the error with which the upload ends. why is how the session was lost.
	replaceSession(why error) error
	// onRecall notes that the upload continues in the session of a record.
	onRecall()
	// onBreak notes how a request ended that carried bytes, or was a commit.
	onBreak(err error)
	// keep writes down where the session stands. It is false if the Store's record of
	// the blob is the place for that.
	keep(u *upload) bool
	// lease is that of a record of the origin's own, or nil.
	lease() *heldLease
	// giveUpLease lets that record go, which somebody else has now. It is false if
	// there is none.
	giveUpLease() bool
}

// ownBlob is the origin of Client.Upload: all bytes can be read again, and nothing of
// the blob is at the registry.
type ownBlob struct{}

func (ownBlob) begin(context.Context, *upload) (step, error) { return stepOpen, nil }
func (ownBlob) isForwarded() bool                            { return false }
func (ownBlob) isRanged() bool                               { return false }
func (ownBlob) commits() bool                                { return true }
func (ownBlob) knowsSize() bool                              { return true }
func (ownBlob) firstOffset() int64                           { return 0 }
func (ownBlob) replaceSession(error) error                   { return nil }
func (ownBlob) onRecall()                                    {}
func (ownBlob) onBreak(error)                                {}
func (ownBlob) keep(*upload) bool                            { return false }
func (ownBlob) lease() *heldLease                            { return nil }
func (ownBlob) giveUpLease() bool                            { return false }
