// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// trickling is a connection whose server answers a request with head, then
// sends one byte a second for ever.
func trickling(head string) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			buf := make([]byte, 4096)
			if _, err := there.Read(buf); err != nil {
				return
			}
			if _, err := io.WriteString(there, head); err != nil {
				return
			}
			for {
				time.Sleep(time.Second)
				if _, err := there.Write([]byte("a")); err != nil {
					return
				}
			}
		}()
		return here, nil
	}
}

// One byte a second is progress, and would keep a push waiting for ever.
func TestTricklingAnswer(t *testing.T) {
	lim := Limits{Stall: time.Minute, Answer: 2 * time.Minute}
	for name, c := range map[string]struct {
		head string
		most time.Duration
		want error
	}{
		"headers": {"HTTP/1.1 200 OK\r\nX-Long: ", 3 * time.Minute, ErrNoAnswer},
		"body":    {"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n", 6 * time.Minute, nil},
	} {
		t.Run("send "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := New(Options{Dial: trickling(c.head)})
				defer time.Sleep(time.Minute) // the server notices
				defer tr.CloseIdleConnections()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				req, err := http.NewRequest(http.MethodGet, "http://reg.test/v2/", nil)
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				a, err := Send(ctx, tr, req, lim, nil)
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if err == nil {
					if _, err := io.Copy(io.Discard, a.Response.Body); err == nil {
						t.Error("the body of the answer is whole")
					}
				}
				if took := time.Since(began); took > c.most {
					t.Errorf("it took %s, want at most %s", took, c.most)
				}
			})
		})
	}
	t.Run("answer instead of a download", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			head := "HTTP/1.1 404 Not Found\r\nContent-Length: 4000000\r\n\r\n"
			tr := New(Options{Dial: trickling(head)})
			defer time.Sleep(time.Minute) // the server notices
			defer tr.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			req, err := http.NewRequest(http.MethodGet, "http://reg.test/v2/x/blobs/y", nil)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			d, err := Receive(ctx, tr, req, lim)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if a := d.Answer(); a.Status != http.StatusNotFound {
				t.Errorf("status %d", a.Status)
			}
			if took := time.Since(began); took > 6*time.Minute {
				t.Errorf("it took %s", took)
			}
		})
	})
}
