// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeChecked writes b to c, with a check before each system call. Write of package
// net cannot be told to check: when the socket is full, it waits and goes on.
func writeChecked(c net.Conn, b []byte, check func() error) (done int, err error) {
	raw := rawConn(c)
	if raw == nil {
		return writePieces(c, b, check)
	}
	err = eachCall(c, raw, "write", check, func(fd int) (bool, error) {
		n, err := unix.Write(fd, b[done:min(done+checkedPiece, len(b))])
		done += max(n, 0)
		return done == len(b), err
	})
	return done, err
}

// readFromChecked moves n bytes from where r stands to c, with a check before each
// system call that writes.
func readFromChecked(c net.Conn, r io.Reader, n int64, check func() error) (int64, error) {
	file, ok := r.(syscall.Conn)
	raw := rawConn(c)
	if !ok || raw == nil {
		return copyChecked(c, r, n, check)
	}
	done, err := sendfileChecked(c, raw, file, n, check)
	if errors.Is(err, errNoSendfile) {
		return copyChecked(c, r, n, check)
	}
	return done, err
}

func sendfileChecked(c net.Conn, raw syscall.RawConn, file syscall.Conn, n int64, check func() error) (done int64, err error) {
	from, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := from.Read(func(in uintptr) bool {
		err = eachCall(c, raw, "sendfile", check, func(out int) (bool, error) {
			m, err := unix.Sendfile(out, int(in), nil, int(min(n-done, checkedPiece)))
			done += int64(max(m, 0))
			switch {
			case done == 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)):
				return true, errNoSendfile
			case err != nil:
				return false, err
			}
			return m == 0 || done == n, nil // 0 is the end of the file
		})
		return true
	})
	if err == nil {
		err = failed
	}
	return done, err
}

func rawConn(c net.Conn) syscall.RawConn {
	if sc, ok := c.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// eachCall calls call, after a check, until it is done or fails, and waits whenever the
// socket is full. Errors of call are wrapped as package net does.
func eachCall(c net.Conn, raw syscall.RawConn, name string, check func() error, call func(fd int) (done bool, err error)) error {
	var err error
	failed := raw.Write(func(fd uintptr) bool {
		for {
			if err = check(); err != nil {
				return true
			}
			var done bool
			done, err = call(int(fd))
			var number unix.Errno
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR):
				continue
			case errors.As(err, &number):
				err = &net.OpError{Op: name, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(name, number)}
				return true
			case done || err != nil:
				return true
			}
		}
	})
	if failed != nil {
		return failed
	}
	return err
}
