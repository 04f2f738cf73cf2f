// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// All that is granted together keeps to the rate, whoever asks.
func TestLimiterKeepsTheRate(t *testing.T) {
	for _, rate := range []int64{1 << 10, 1_000_000, 1 << 40} {
		synctest.Test(t, func(t *testing.T) {
			l := NewLimiter(rate)
			began := time.Now()
			var wg sync.WaitGroup
			total := rate * 4
			for range 4 {
				wg.Go(func() {
					for left := total / 4; left > 0; {
						n := l.grant(left, nil)
						if n < 1 || n > left {
							t.Errorf("granted %d of %d", n, left)
							return
						}
						left -= n
					}
				})
			}
			wg.Wait()
			if took := time.Since(began); took < 3900*time.Millisecond || took > 4100*time.Millisecond {
				t.Errorf("%d bytes at %d a second took %s, want 4s", total, rate, took)
			}
		})
	}
}

// A connection that waits for its turn can be killed.
func TestLimitedConnCanBeKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		go io.Copy(io.Discard, b)
		c := newConn(a, NewLimiter(1<<10))
		done := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, 1<<30))
			done <- err
		}()
		time.Sleep(time.Minute)
		if got := c.Info().Sent; got < 59<<10 || got > 62<<10 {
			t.Errorf("%d bytes in a minute, want 60 KiB", got)
		}
		c.Kill()
		if err := <-done; err == nil {
			t.Error("the write went on")
		}
	})
}

// Limited or not, a file goes out by sendfile: through ReadFrom of the
// connection below, in pieces.
func TestLimitedReadFrom(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan []byte, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		b, _ := io.ReadAll(c)
		got <- b
	}()
	tcp, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	below := &counting{TCPConn: tcp.(*net.TCPConn)}
	c := newConn(below, NewLimiter(16<<20))
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := c.ReadFrom(&io.LimitedReader{R: f, N: int64(len(content))})
	if err != nil || n != int64(len(content)) {
		t.Errorf("%d bytes, %v", n, err)
	}
	c.Close()
	if b := <-got; !bytes.Equal(b, content) {
		t.Errorf("%d bytes arrived, not the ones sent", len(b))
	}
	if below.pieces < 2 || below.largest > 16<<20/20 {
		t.Errorf("%d pieces, the largest of %d bytes", below.pieces, below.largest)
	}
}

// counting sees what is handed to sendfile.
type counting struct {
	*net.TCPConn
	pieces  int
	largest int64
}

func (c *counting) ReadFrom(r io.Reader) (int64, error) {
	l := r.(*io.LimitedReader)
	c.pieces++
	c.largest = max(c.largest, l.N)
	return c.TCPConn.ReadFrom(r)
}
