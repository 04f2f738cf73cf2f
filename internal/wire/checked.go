// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"io"
	"net"
)

// CheckedBy makes a request with the returned context ask check before each write to
// its connection, if this package dialled the connection. An error of check ends the
// request: the connection is reset, and the rest is not sent. check is called from
// any goroutine, often, and must not block.
//
// A context that ends stops a request as well, but for that a goroutine has to run.
// In a process that was stopped (SIGSTOP) and continues, the writer may run first. On
// Linux, each system call that writes comes right after a check. Elsewhere, a write
// that waits for the peer may move the rest of its 256 KiB.
func CheckedBy(ctx context.Context, check func() error) context.Context {
	return context.WithValue(ctx, checkKey{}, check)
}

type checkKey struct{}

func checkOf(ctx context.Context) func() error {
	check, _ := ctx.Value(checkKey{}).(func() error)
	return check
}

// checkedPiece is the most that one write moves after a check, in bytes.
const checkedPiece = 256 << 10

// checked calls write with what the request that has the connection checks before each
// write, nil if it checks nothing. If it refuses, the connection is killed, with what
// the kernel still holds.
func (c *Conn) checked(write func(check func() error) error) error {
	u := c.user.Load()
	if u == nil || u.check == nil {
		return write(nil)
	}
	var refused error
	err := write(func() error {
		refused = u.check()
		return refused
	})
	if refused != nil {
		c.Kill() // not within write: Close waits for it
	}
	return err
}

// write is Conn.Write below.
func (c *Conn) write(b []byte) (n int, err error) {
	err = c.checked(func(check func() error) error {
		if check == nil {
			n, err = c.Conn.Write(b)
		} else {
			n, err = writeChecked(c.Conn, b, check)
		}
		return err
	})
	return n, err
}

// readFrom moves n bytes of r to the connection below, by sendfile if r is a file.
func (c *Conn) readFrom(to io.ReaderFrom, r io.Reader, n int64) (moved int64, err error) {
	err = c.checked(func(check func() error) error {
		if check == nil {
			moved, err = to.ReadFrom(&io.LimitedReader{R: r, N: n})
		} else {
			moved, err = readFromChecked(c.Conn, r, n, check)
		}
		return err
	})
	return moved, err
}

// writePieces writes b with a check before each piece.
func writePieces(c net.Conn, b []byte, check func() error) (done int, err error) {
	for {
		if err := check(); err != nil {
			return done, err
		}
		n, err := c.Write(b[done:min(done+checkedPiece, len(b))])
		done += n
		if err != nil || done == len(b) {
			return done, err
		}
	}
}

// copyChecked moves n bytes of r to c through a buffer.
func copyChecked(c net.Conn, r io.Reader, n int64, check func() error) (int64, error) {
	return io.Copy(checkedWriter{c, check}, io.LimitReader(r, n))
}

type checkedWriter struct {
	c     net.Conn
	check func() error
}

func (w checkedWriter) Write(b []byte) (int, error) { return writeChecked(w.c, b, w.check) }

// errNoSendfile means that nothing was moved, and that the source has to be read.
var errNoSendfile = errors.New("sendfile does not take this source")
