// SPDX-License-Identifier: Apache-2.0

package resume

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/rpush-go/rpush/internal/protocol"
)

// enter waits for the right to have a session open.
func (u *upload) enter(ctx context.Context) error {
	if u.entered {
		return nil
	}
	waited, err := u.c.pace.enter(ctx)
	if err != nil {
		return err
	}
	if u.entered = true; waited {
		u.loop.Progress() // others made it: the wait is no failure
	}
	return nil
}

// leave gives that right to another upload.
func (u *upload) leave() {
	if u.entered {
		u.entered = false
		u.c.pace.leave()
	}
}

// open gets a session, unless the blob is there already.
func (u *upload) open(ctx context.Context) (step, error) {
	if err := u.enter(ctx); err != nil {
		return stepOpen, err
	}
	switch there, err := u.existed(ctx); {
	case err != nil:
		return stepOpen, err
	case there:
		return stepDone, nil
	}
	s, a, err := u.c.openSession(ctx, u.subject(), u.blob.MountFrom)
	if a == nil {
		if errors.Is(err, io.EOF) {
			u.hungUp()
		}
		return stepOpen, err
	}
	u.hangups = 0
	switch {
	case err != nil:
		return stepOpen, err
	case a.Status == http.StatusCreated && u.blob.MountFrom != "":
		u.res.Mounted = true
		return u.finish(Mounted), nil
	case a.Status != http.StatusAccepted && u.blob.MountFrom != "" && protocol.Classify(protocol.Unexpected(a, time.Now())).Class == protocol.Final:
		// Harbor answers 401 and Pulp 404 if the other repository is not there or
		// not to be read. The registry may still take the blob itself.
		u.c.log.WithFields(logrus.Fields{"digest": u.blob.Digest, "status": a.Status}).Info("mount refused, sending the blob")
		u.blob.MountFrom = ""
		return stepOpen, nil
	case a.Status != http.StatusAccepted:
		return stepOpen, protocol.Unexpected(a, time.Now())
	}
	u.c.pace.announced(s.lengths)
	u.sess, u.blob.Missing = &sessionHistory{session: s}, false
	u.emit(Event{Kind: Opened})
	u.keep(ctx)
	return u.proceed(), nil
}

// maxHangups is how many times in a row a registry may close the connection in the
// place of an answer to a POST, before the user is told what that may mean.
const maxHangups = 3

// hungUp counts POSTs to which the registry closed the connection. Until 2024 ECR
// did so for a repository that does not exist
// (https://github.com/aws/containers-roadmap/issues/1970). It may be a bad line as
// well, so the upload goes on.
func (u *upload) hungUp() {
	if u.hangups++; u.hangups == maxHangups && !u.c.saidHungUp.Swap(true) {
		u.warn(errors.New("the registry closes the connection instead of opening an upload; some do so if the repository does not exist"))
	}
}
