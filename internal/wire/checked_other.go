// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package wire

import (
	"io"
	"net"
)

func writeChecked(c net.Conn, b []byte, check func() error) (int, error) {
	return writePieces(c, b, check)
}

func readFromChecked(c net.Conn, r io.Reader, n int64, check func() error) (done int64, err error) {
	to, ok := c.(io.ReaderFrom)
	if !ok {
		return copyChecked(c, r, n, check)
	}
	for done < n {
		if err := check(); err != nil {
			return done, err
		}
		want := min(n-done, checkedPiece)
		m, err := to.ReadFrom(&io.LimitedReader{R: r, N: want})
		done += m
		if err != nil || m < want {
			return done, err
		}
	}
	return done, nil
}
