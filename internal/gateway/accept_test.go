// SPDX-License-Identifier: Apache-2.0

package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/gateway"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

func randomBlob(seed byte, n int) ([]byte, string) {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b, digest.FromBytes(b).String()
}

// fragile is a registry that loses a session with any break, and a gateway
// beside it that does not.
func fragile(t *testing.T, dir string, so gateway.ServerOptions) *site {
	so.AcceptDir = dir
	if so.Upstream == "" {
		so.Upstream = regHost
	}
	return newSite(t, scripted.Options{Store: scripted.Fragile}, so, nil)
}

func (s *site) blob(repo, dgst string) []byte { return s.reg.Blob(repo, dgst) }

func TestAcceptWholePush(t *testing.T) {
	s := fragile(t, t.TempDir(), gateway.ServerOptions{})
	s.write("team/app")
}

// Every byte of a broken PATCH is kept, and the offset is told to the byte.
func TestAcceptKeepsEveryByte(t *testing.T) {
	dir := t.TempDir()
	s := fragile(t, dir, gateway.ServerOptions{})
	data, dgst := randomBlob(1, 3*mib+17)
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	if resp.StatusCode != 202 || !strings.Contains(at, "accepted.") {
		t.Fatalf("POST: %d %q", resp.StatusCode, at)
	}
	if resp, _ := s.do("GET", at, ""); resp.StatusCode != 204 || resp.Header.Get("Range") != "0-0" {
		t.Errorf("a new upload: %d %q", resp.StatusCode, resp.Header.Get("Range"))
	}
	held := 0
	for _, n := range []int{1, 100, mib, 2*mib + 5} {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nContent-Range: %d-%d\r\n\r\n", at, len(data)-held, held, len(data)-1)
		c.Write(data[held:n])
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c) // the gateway has read all of it when it hangs up
		c.Close()
		held = n
		resp, _ := s.do("HEAD", at, "")
		if got, want := resp.Header.Get("Range"), fmt.Sprintf("0-%d", held-1); resp.StatusCode != 204 || got != want {
			t.Errorf("after %d bytes: %d %q, want %q", held, resp.StatusCode, got, want)
		}
	}
	// Another offset is refused, and changes nothing.
	for _, from := range []int{0, held - 1, held + 1} {
		resp, _ := s.do("PATCH", at, "xyz", "Content-Range", fmt.Sprintf("%d-%d", from, from+2))
		if resp.StatusCode != 416 || resp.Header.Get("Range") != fmt.Sprintf("0-%d", held-1) || resp.Header.Get("Location") == "" {
			t.Errorf("from %d: %d %q", from, resp.StatusCode, resp.Header.Get("Range"))
		}
	}
	// The upload is of this repository, and nobody guesses its name.
	for _, bad := range []string{strings.Replace(at, "team/app", "team/other", 1), at[:len(at)-1], at + "0", "/v2/team/app/blobs/uploads/accepted.../x"} {
		if resp, _ := s.do("GET", bad, ""); resp.StatusCode != 404 {
			t.Errorf("%s: %d", bad, resp.StatusCode)
		}
	}
	// Another process goes on.
	s.close()
	two := fragile(t, dir, gateway.ServerOptions{})
	two.reg, two.upstream = s.reg, s.upstream
	if resp, _ := two.do("GET", at, ""); resp.StatusCode != 204 || resp.Header.Get("Range") != fmt.Sprintf("0-%d", held-1) {
		t.Errorf("after a restart: %d %q", resp.StatusCode, resp.Header.Get("Range"))
	}
	resp, body := two.do("PUT", at+"?digest="+digest.FromString("other").String(), string(data[held:]))
	if resp.StatusCode != 400 || !strings.Contains(body, "DIGEST_INVALID") {
		t.Errorf("a wrong digest: %d %s", resp.StatusCode, body)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	_ = dgst
}

// rpush's own engine pushes through a line that resets every connection to a
// registry that loses every session.
func TestAcceptBehindBadLine(t *testing.T) {
	dir := t.TempDir()
	s := fragile(t, dir, gateway.ServerOptions{})
	line, err := proxy.Start(s.addr, proxy.Options{Plan: proxy.Every(mib, proxy.Fault{Kind: proxy.ResetClient})})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(line.Close)
	repo, err := name.NewRepository(line.Addr() + "/team/app")
	if err != nil {
		t.Fatal(err)
	}
	client, err := resume.New(repo, resume.Options{PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	data, dgst := randomBlob(2, 12*mib)
	_, err = client.Upload(t.Context(), resume.Blob{
		Digest: digest.Digest(dgst), Size: int64(len(data)),
		Open: func(_ context.Context, offset int64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(data[offset:])), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	st := line.Stats()
	ratio := float64(st.Up) / float64(len(data))
	t.Logf("%d resets, %.4f x the blob", st.Faults, ratio)
	if st.Faults < 8 || ratio > 1.05 {
		t.Errorf("%d resets, %.4f x the blob, want at most 1.05", st.Faults, ratio)
	}
	if !bytes.Equal(s.blob("team/app", dgst), data) {
		t.Error("the registry has something else")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The registry decides who uploads, before the gateway takes a byte and when it
// commits.
func TestAcceptAuthorization(t *testing.T) {
	dir := t.TempDir()
	s := newSite(t, scripted.Options{Store: scripted.Fragile, Auth: scripted.Auth{Scheme: scripted.Basic, User: "me", Password: "right"}},
		gateway.ServerOptions{Upstream: regHost, AcceptDir: dir}, nil)
	if resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", ""); resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("POST without credentials: %d", resp.StatusCode)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*")); len(left) != 0 {
		t.Errorf("a stranger's upload was opened: %v", left)
	}
	s.write("team/app", remote.WithAuth(&authn.Basic{Username: "me", Password: "right"}))

	const right = "Basic bWU6cmlnaHQ="
	data, dgst := randomBlob(3, 1000)
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "", "Authorization", right)
	at := resp.Header.Get("Location")
	resp, _ = s.do("PUT", at+"?digest="+dgst, string(data))
	if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" || s.blob("team/app", dgst) != nil {
		t.Errorf("a commit without credentials: %d", resp.StatusCode)
	}
	// The bytes are kept, so the commit alone is sent again.
	if resp, body := s.do("PUT", at+"?digest="+dgst, "", "Authorization", right); resp.StatusCode != 201 || !bytes.Equal(s.blob("team/app", dgst), data) {
		t.Errorf("the commit: %d %s", resp.StatusCode, body)
	}
}

// A client that is not heard of any more does not keep its successor away.
func TestAcceptTakesOver(t *testing.T) {
	s := fragile(t, t.TempDir(), gateway.ServerOptions{})
	data, dgst := randomBlob(4, 1000)
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n%s", at, data[:300])
	for range 6000 { // until the bytes are there
		if b, _ := filepath.Glob(filepath.Join(s.acceptDir, "rpush-accepted", "*.data")); len(b) == 1 {
			if st, err := os.Stat(b[0]); err == nil && st.Size() == 300 {
				break
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	resp, _ = s.do("GET", at, "")
	if got := resp.Header.Get("Range"); got != "0-299" {
		t.Fatalf("the upload stands at %q", got)
	}
	c.Write(data[300:]) // too late
	resp, body := s.do("PUT", at+"?digest="+dgst, string(data[300:]), "Content-Range", "300-999")
	if resp.StatusCode != 201 || !bytes.Equal(s.blob("team/app", dgst), data) {
		t.Errorf("the successor: %d %s", resp.StatusCode, body)
	}
}

// What exceeds the limit gets an answer that clients retry, and hurts nobody else.
func TestAcceptLimit(t *testing.T) {
	s := fragile(t, t.TempDir(), gateway.ServerOptions{AcceptLimit: 1 * mib})
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	if resp, _ := s.do("PATCH", at, strings.Repeat("x", 2*mib)); resp.StatusCode != 503 {
		t.Errorf("2 MiB: %d", resp.StatusCode)
	}
	if resp, _ := s.do("DELETE", at, ""); resp.StatusCode != 204 {
		t.Errorf("DELETE: %d", resp.StatusCode)
	}
	if resp, _ := s.do("GET", at, ""); resp.StatusCode != 404 {
		t.Errorf("GET after DELETE: %d", resp.StatusCode)
	}
	s.write("team/app")
}

// A commit goes on if its client breaks off, and a question about the upload does
// not disturb it.
func TestAcceptedCommitGoesOn(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	first := true
	s := newSite(t, scripted.Options{Store: scripted.Fragile}, gateway.ServerOptions{Upstream: regHost, AcceptDir: t.TempDir()}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPut && first {
				first = false
				close(entered)
				<-release
			}
			h.ServeHTTP(w, r)
		})
	})
	data, dgst := randomBlob(5, 1000)
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "PUT %s?digest=%s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n%s", at, dgst, data)
	<-entered
	c.Close()
	if resp, _ := s.do("GET", at, ""); resp.StatusCode != 204 || resp.Header.Get("Range") != "0-999" {
		t.Errorf("during the commit: %d %q", resp.StatusCode, resp.Header.Get("Range"))
	}
	close(release)
	if resp, body := s.do("PUT", at+"?digest="+dgst, ""); resp.StatusCode != 404 && resp.StatusCode != 201 {
		t.Errorf("the commit again: %d %s", resp.StatusCode, body)
	}
	if !bytes.Equal(s.blob("team/app", dgst), data) {
		t.Error("the registry does not have the blob")
	}
}

func TestAcceptedRanges(t *testing.T) {
	s := fragile(t, t.TempDir(), gateway.ServerOptions{})
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	for span, want := range map[string]int{"0-1": 400, "0-3": 400, "2-0": 400, "x-2": 400, "-1-2": 400, "0": 400, "1-3": 416, "9223372036854775807-9223372036854775809": 400} {
		if resp, _ := s.do("PATCH", at, "abc", "Content-Range", span); resp.StatusCode != want {
			t.Errorf("%s: got %d, want %d", span, resp.StatusCode, want)
		}
	}
	if resp, _ := s.do("PATCH", at, "abc", "Content-Range", "0-2"); resp.StatusCode != 202 || resp.Header.Get("Range") != "0-2" {
		t.Errorf("the right one: %d %q", resp.StatusCode, resp.Header.Get("Range"))
	}
}

// A fault of the gateway's own disk is not the client's.
func TestAcceptedBytesLost(t *testing.T) {
	// Nothing can be handed on as it comes.
	var committing atomic.Bool
	refused := make(chan struct{}, 100)
	s := newSite(t, scripted.Options{Store: scripted.Fragile}, gateway.ServerOptions{Upstream: regHost, AcceptDir: t.TempDir()}, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch && !committing.Load() {
				w.WriteHeader(http.StatusForbidden)
				refused <- struct{}{}
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	data, dgst := randomBlob(6, 2*mib)
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	at := resp.Header.Get("Location")
	if resp, _ := s.do("PATCH", at, string(data)); resp.StatusCode != 202 {
		t.Fatalf("PATCH: %d", resp.StatusCode)
	}
	files, err := filepath.Glob(filepath.Join(s.acceptDir, "rpush-accepted", "*.data"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	<-refused
	if err := os.Truncate(files[0], mib); err != nil {
		t.Fatal(err)
	}
	committing.Store(true)
	if resp, body := s.do("PUT", at+"?digest="+dgst, ""); resp.StatusCode != 503 {
		t.Errorf("got %d %s, want 503", resp.StatusCode, body)
	}
	if s.blob("team/app", dgst) != nil {
		t.Error("the registry has a blob")
	}
}

// A file that cannot be opened is the gateway's fault, and is said.
func TestAcceptedFileGone(t *testing.T) {
	s := fragile(t, t.TempDir(), gateway.ServerOptions{})
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	files, err := filepath.Glob(filepath.Join(s.acceptDir, "rpush-accepted", "*.data"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.Remove(files[0]); err != nil {
		t.Fatal(err)
	}
	if resp, body := s.do("PATCH", resp.Header.Get("Location"), "xyz"); resp.StatusCode != 503 || !strings.Contains(body, "UNAVAILABLE") {
		t.Errorf("got %d %s, want 503", resp.StatusCode, body)
	}
}

// A PUT whose bytes were kept, but which was refused, comes again as it was.
func TestAcceptedPutComesAgain(t *testing.T) {
	const right = "Basic bWU6cmlnaHQ="
	s := newSite(t, scripted.Options{Store: scripted.Fragile, Auth: scripted.Auth{Scheme: scripted.Basic, User: "me", Password: "right"}},
		gateway.ServerOptions{Upstream: regHost, AcceptDir: t.TempDir()}, nil)
	for first := range 4 {
		size := 1000
		if first >= 2 { // it is handed on as it comes
			size = 2*mib + 1
		}
		data, dgst := randomBlob(byte(8+first), size)
		resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "", "Authorization", right)
		at := resp.Header.Get("Location")
		head := size / 3 * (first % 2)
		if head > 0 {
			s.do("PATCH", at, string(data[:head]))
		}
		for range 2 {
			if resp, _ := s.do("PUT", at+"?digest="+dgst, string(data[head:])); resp.StatusCode != 401 {
				t.Errorf("a commit without credentials: %d", resp.StatusCode)
			}
			if resp, _ := s.do("GET", at, ""); resp.Header.Get("Range") != fmt.Sprintf("0-%d", size-1) {
				t.Errorf("the upload stands at %q", resp.Header.Get("Range"))
			}
		}
		if resp, body := s.do("PUT", at+"?digest="+dgst, string(data[head:]), "Authorization", right); resp.StatusCode != 201 || !bytes.Equal(s.blob("team/app", dgst), data) {
			t.Errorf("the same commit again: %d %s", resp.StatusCode, body)
		}
	}
}

// Two gateways would tell each other's clients wrong offsets.
func TestAcceptDirOfOneGateway(t *testing.T) {
	s := fragile(t, t.TempDir(), gateway.ServerOptions{})
	g, err := gateway.New(gateway.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := gateway.ServerOptions{Upstream: regHost, AcceptDir: s.acceptDir}
	if _, err := g.NewServer(o); !errors.Is(err, gateway.ErrDirInUse) {
		t.Errorf("a second gateway: %v", err)
	}
	s.close()
	two, err := g.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	two.Close()
}

// What a gateway that was killed left without its other half goes at the start.
func TestAcceptedOrphans(t *testing.T) {
	dir := t.TempDir()
	s := fragile(t, dir, gateway.ServerOptions{})
	resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
	s.close()
	kept, err := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*"))
	if err != nil || len(kept) != 2 {
		t.Fatalf("%v, %v", kept, err)
	}
	for _, file := range []string{strings.Repeat("a", 32) + ".data", strings.Repeat("b", 32) + ".json", "notes.data"} {
		if err := os.WriteFile(filepath.Join(dir, "rpush-accepted", file), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	two := fragile(t, dir, gateway.ServerOptions{})
	left, err := filepath.Glob(filepath.Join(dir, "rpush-accepted", "*.*"))
	kept = append(kept, filepath.Join(dir, "rpush-accepted", "notes.data"))
	if err != nil || !slices.Equal(left, kept) {
		t.Errorf("left: %v, want %v", left, kept)
	}
	if resp, _ := two.do("GET", resp.Header.Get("Location"), ""); resp.StatusCode != 204 {
		t.Errorf("the upload that was whole: %d", resp.StatusCode)
	}
}

// Uploads that nobody goes on with make room for others, the oldest first.
func TestAcceptedMakesRoom(t *testing.T) {
	dir := t.TempDir()
	const limit = 1 * mib
	s := fragile(t, dir, gateway.ServerOptions{AcceptLimit: limit})
	upload := func(s *site, n int) (at string, status int) {
		t.Helper()
		resp, _ := s.do("POST", "/v2/team/app/blobs/uploads/", "")
		at = resp.Header.Get("Location")
		resp, _ = s.do("PATCH", at, strings.Repeat("x", n))
		return at, resp.StatusCode
	}
	var at [3]string
	for i, hours := range []int{3, 2, 0} {
		at[i], _ = upload(s, limit*3/10)
		path := filepath.Join(dir, "rpush-accepted", at[i][strings.LastIndex(at[i], ".")+1:]+".data")
		old := time.Now().Add(-time.Duration(hours) * time.Hour)
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	two := fragile(t, dir, gateway.ServerOptions{AcceptLimit: limit})
	want := func(statuses ...int) {
		t.Helper()
		for i, status := range statuses {
			if status == 0 {
				continue // asking would be a use
			}
			if resp, _ := two.do("HEAD", at[i], ""); resp.StatusCode != status {
				t.Errorf("upload %d: %d, want %d", i, resp.StatusCode, status)
			}
		}
	}
	if _, status := upload(two, limit*3/10); status != 202 {
		t.Errorf("an upload that needs the room of one: %d", status)
	}
	want(404, 0, 204)
	if _, status := upload(two, limit*3/10); status != 202 {
		t.Errorf("an upload that needs the room of another one: %d", status)
	}
	want(404, 404, 204)
	if _, status := upload(two, limit*3/10); status != 503 {
		t.Errorf("an upload that needs the room of one in use: %d", status)
	}
	want(404, 404, 204)
}
