// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// user is a client that does one request at a time, by hand.
type user struct {
	t      *testing.T
	g      *Registry
	base   string
	client *http.Client
	header http.Header
}

func serve(t *testing.T, o Options) *user {
	t.Helper()
	g := New(o)
	s := httptest.NewServer(g)
	tr := &http.Transport{}
	t.Cleanup(func() { tr.CloseIdleConnections(); g.Close(); s.Close() })
	return &user{t: t, g: g, base: s.URL, client: &http.Client{Transport: tr}, header: http.Header{}}
}

type answer struct {
	status int
	header http.Header
	body   string
	err    error
}

func (a answer) String() string {
	return fmt.Sprintf("%d Range %q Location %q %s %v", a.status, a.header.Get("Range"), a.header.Get("Location"), a.body, a.err)
}

// do sends a request; ref may be relative to the registry. rng is Content-Range.
func (u *user) do(method, ref, rng string, body io.Reader) answer {
	u.t.Helper()
	target, err := url.Parse(u.base)
	if err != nil {
		u.t.Fatal(err)
	}
	if target, err = target.Parse(ref); err != nil {
		u.t.Fatal(err)
	}
	req, err := http.NewRequest(method, target.String(), body)
	if err != nil {
		u.t.Fatal(err)
	}
	for k, v := range u.header {
		req.Header[k] = v
	}
	if rng != "" {
		req.Header.Set("Content-Range", rng)
	}
	res, err := u.client.Do(req)
	if err != nil {
		return answer{err: err, header: http.Header{}}
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b), err}
}

func (u *user) want(a answer, status int) answer {
	u.t.Helper()
	if a.status != status {
		u.t.Fatalf("got %v, want %d", a, status)
	}
	return a
}

const name = "/v2/team/app"

// post opens a session and gives its location.
func (u *user) post() string {
	u.t.Helper()
	return u.want(u.do("POST", name+"/blobs/uploads/", "", nil), 202).header.Get("Location")
}

func (u *user) patch(loc string, start int, chunk string) answer {
	u.t.Helper()
	return u.do("PATCH", loc, fmt.Sprintf("%d-%d", start, start+len(chunk)-1), strings.NewReader(chunk))
}

func (u *user) status(loc string) answer { u.t.Helper(); return u.do("GET", loc, "", nil) }

func (u *user) put(loc, content string) answer {
	u.t.Helper()
	return u.do("PUT", loc+"&digest="+digestOf(content), "", nil)
}

func digestOf(s string) string { return sum("", []byte(s)) }

// breakPatch sends half of a declared chunk and resets the connection.
func (u *user) breakPatch(loc string, start int, half string) {
	u.t.Helper()
	target, _ := url.Parse(u.base)
	target, err := target.Parse(loc)
	if err != nil {
		u.t.Fatal(err)
	}
	c, err := net.Dial("tcp", target.Host)
	if err != nil {
		u.t.Fatal(err)
	}
	before := u.received()
	fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nContent-Range: %d-%d\r\n\r\n%s",
		target.RequestURI(), target.Host, 2*len(half), start, start+2*len(half)-1, half)
	u.until("the half chunk arrived", func() bool { return u.received() == before+int64(len(half)) })
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	u.until("the broken PATCH ended", func() bool { return u.g.Active() == 0 })
}

func (u *user) until(what string, ok func() bool) {
	u.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			u.t.Fatalf("it never came that %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (u *user) received() (n int64) {
	for _, q := range u.g.Requests() {
		if q.Kind == Patch {
			n += q.Body
		}
	}
	return n
}

func (u *user) noViolations() {
	u.t.Helper()
	for _, v := range u.g.Violations() {
		u.t.Errorf("violation: %s", v)
	}
}

func TestPush(t *testing.T) {
	u := serve(t, Options{UserAgent: "rpush/"})
	u.header.Set("User-Agent", "rpush/1")
	u.want(u.do("GET", "/v2/", "", nil), 200)
	u.want(u.do("HEAD", name+"/blobs/"+digestOf("0123456789"), "", nil), 404)
	first := u.post()
	a := u.want(u.patch(first, 0, "0123"), 202)
	second := a.header.Get("Location")
	if second == first || a.header.Get("Range") != "0-3" {
		t.Errorf("PATCH: got %v", a)
	}
	a = u.want(u.patch(first, 4, "4567"), 416)
	if a.header.Get("Range") != "" || a.header.Get("Location") != "" {
		t.Errorf("stale PATCH: got %v, want neither Range nor Location", a)
	}
	a = u.want(u.do("HEAD", first, "", nil), 204) // stale is good enough to ask
	if a.header.Get("Range") != "0-3" || a.header.Get("Location") == second {
		t.Errorf("status: got %v", a)
	}
	second = a.header.Get("Location")
	u.want(u.patch(second, 5, "5"), 416)
	u.want(u.do("PATCH", second, "4-9", strings.NewReader("4567")), 400)
	u.want(u.do("PUT", second+"&digest=bad", "", nil), 400)
	a = u.want(u.do("PUT", second+"&digest="+digestOf("0123456789"), "", nil), 400)
	if !strings.Contains(a.body, "DIGEST_INVALID") {
		t.Errorf("short commit: got %v", a)
	}
	a = u.want(u.do("PUT", second+"&digest="+digestOf("0123456789"), "4-9", strings.NewReader("456789")), 201)
	if got := u.want(u.do("GET", a.header.Get("Location"), "", nil), 200); got.body != "0123456789" {
		t.Errorf("blob: got %q", got.body)
	}
	u.want(u.status(second), 404)
	u.want(u.do("HEAD", name+"/blobs/"+digestOf("0123456789"), "", nil), 200)
	if u.g.Uploads() != 0 || string(u.g.Blob("team/app", digestOf("0123456789"))) != "0123456789" {
		t.Error("the blob is not committed")
	}

	loc := u.post()
	u.want(u.do("DELETE", loc, "", nil), 204)
	u.want(u.status(loc), 404)
	u.noViolations()

	var lines []string
	for _, q := range u.g.Requests()[:6] {
		lines = append(lines, fmt.Sprintf("%s %d %d %d+%d %d %d", q.Kind, q.N, q.Session, q.Start, q.Length, q.Body, q.Status))
	}
	want := []string{
		"ping 1 0 -1+0 0 200", "head blob 1 0 -1+0 0 404", "post 1 1 -1+0 0 202",
		"patch 1 1 0+4 4 202", "patch 2 1 4+4 0 416", "status 1 1 -1+0 0 204",
	}
	if g, w := strings.Join(lines, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("log:\n%s\nwant:\n%s", g, w)
	}
}

func TestMount(t *testing.T) {
	u := serve(t, Options{})
	d := digestOf("x")
	u.g.PutBlob("base", d, []byte("x"))
	u.want(u.do("POST", name+"/blobs/uploads/?mount="+d+"&from=elsewhere", "", nil), 202)
	u.want(u.do("POST", name+"/blobs/uploads/?mount="+d+"&from=base", "", nil), 201)
	u.want(u.do("HEAD", name+"/blobs/"+d, "", nil), 200)
}

func TestManifest(t *testing.T) {
	u := serve(t, Options{})
	u.header.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	d := digestOf("x")
	body := fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q},"layers":[{"digest":%q}]}`, d, d)
	a := u.want(u.do("PUT", name+"/manifests/v1", "", strings.NewReader(body)), 400)
	if !strings.Contains(a.body, "MANIFEST_BLOB_UNKNOWN") || len(u.g.Violations()) != 1 {
		t.Errorf("early manifest: got %v, violations %q", a, u.g.Violations())
	}
	u.g.PutBlob("team/app", d, []byte("x"))
	u.want(u.do("HEAD", name+"/manifests/v1", "", nil), 404)
	u.want(u.do("PUT", name+"/manifests/v1", "", strings.NewReader(body)), 201)
	a = u.want(u.do("GET", name+"/manifests/v1", "", nil), 200)
	if a.body != body || a.header.Get("Docker-Content-Digest") != digestOf(body) {
		t.Errorf("by tag: got %v", a)
	}
	u.want(u.do("HEAD", name+"/manifests/"+digestOf(body), "", nil), 200)
	u.want(u.do("PUT", name+"/manifests/"+d, "", strings.NewReader(body)), 400)

	index := fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q}]}`, digestOf("nothing"))
	u.want(u.do("PUT", name+"/manifests/all", "", strings.NewReader(index)), 400)
	index = fmt.Sprintf(`{"schemaVersion":2,"manifests":[{"digest":%q}]}`, digestOf(body))
	u.want(u.do("PUT", name+"/manifests/all", "", strings.NewReader(index)), 201)
	if string(u.g.Manifest("team/app", "all")) != index {
		t.Error("the index is not stored")
	}
}

func TestBrokenPatch(t *testing.T) {
	for _, tc := range []struct {
		what  string
		o     Options
		rng   string // after 0123 acknowledged and 4567 broken off; empty is a lost session
		start int
	}{
		{"keep", Options{}, "0-7", 8},
		{"parts", Options{PartSize: 5}, "0-4", 5},
		{"parts never below what was acknowledged", Options{PartSize: 9}, "0-3", 4},
		{"boundary", Options{Store: Boundary}, "0-3", 4},
		{"fragile", Options{Store: Fragile}, "", 0},
	} {
		t.Run(tc.what, func(t *testing.T) {
			u := serve(t, tc.o)
			loc := u.want(u.patch(u.post(), 0, "0123"), 202).header.Get("Location")
			u.breakPatch(loc, 4, "4567")
			a := u.status(loc)
			if tc.rng == "" {
				u.want(a, 404)
				return
			}
			if a.status != 204 || a.header.Get("Range") != tc.rng {
				t.Fatalf("status: got %v, want %s", a, tc.rng)
			}
			rest := "0123456789"[tc.start:]
			a = u.want(u.patch(a.header.Get("Location"), tc.start, rest), 202)
			u.want(u.put(a.header.Get("Location"), "0123456789"), 201)
			u.noViolations()
			if q := u.g.Requests()[2]; q.Status != 0 || q.Body != 4 {
				t.Errorf("log of the broken PATCH: got %+v", q)
			}
		})
	}
}

// A body that ends by a polite close is told from one that a reset ended.
func TestTruncated(t *testing.T) {
	for _, polite := range []bool{false, true} {
		u := serve(t, Options{})
		loc := u.post()
		target, err := url.Parse(loc)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", target.Host)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "PATCH %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 8\r\nContent-Range: 0-7\r\n\r\n0123", target.RequestURI(), target.Host)
		u.until("the half chunk arrived", func() bool { return u.received() == 4 })
		if !polite {
			c.(*net.TCPConn).SetLinger(0)
		}
		c.Close()
		u.until("the broken PATCH ended", func() bool { return u.g.Active() == 0 })
		if q := u.g.Requests()[1]; q.Truncated != polite {
			t.Errorf("polite %v: got %+v", polite, q)
		}
	}
}

func TestRangeStyles(t *testing.T) {
	for style, want := range map[RangeStyle][3]string{ // empty, 1 byte, 3 bytes
		ZeroBased:     {"0-0", "0-0", "0-2"},
		BytesPrefix:   {"bytes=0-0", "bytes=0-0", "bytes=0-2"},
		OffByOne:      {"0-0", "0-1", "0-3"},
		EmptyMinusOne: {"0--1", "0-0", "0-2"},
		NoRange:       {"", "", ""},
		Beyond:        {"0-1099511627776", "0-1099511627777", "0-1099511627779"},
		Stuck:         {"0-0", "0-0", "0-0"},
	} {
		u := serve(t, Options{Range: style})
		loc := u.post()
		got := [3]string{u.status(loc).header.Get("Range")}
		for i, chunk := range []string{"a", "bc"} {
			a := u.want(u.patch(loc, i, chunk), 202)
			loc = a.header.Get("Location")
			got[i+1] = u.status(loc).header.Get("Range")
			if a.header.Get("Range") != got[i+1] {
				t.Errorf("style %d: PATCH says %q, status %q", style, a.header.Get("Range"), got[i+1])
			}
		}
		if got != want {
			t.Errorf("style %d: got %q, want %q", style, got, want)
		}
	}
}

func TestStatusVerbs(t *testing.T) {
	for verbs, want := range map[StatusVerbs][2]int{HeadAndGet: {204, 204}, GetOnly: {405, 204}, NoStatus: {400, 400}} {
		u := serve(t, Options{Status: verbs})
		loc := u.post()
		got := [2]int{u.do("HEAD", loc, "", nil).status, u.status(loc).status}
		if got != want {
			t.Errorf("verbs %d: got %v, want %v", verbs, got, want)
		}
		u.want(u.patch(loc, 0, "x"), 202)
	}
}

func TestLocationStyles(t *testing.T) {
	u := serve(t, Options{Location: Relative})
	if loc := u.post(); !strings.HasPrefix(loc, name+"/blobs/uploads/") {
		t.Errorf("relative: got %q", loc)
	}
	u = serve(t, Options{Location: MissingOnStatus})
	if loc := u.post(); u.status(loc).header.Get("Location") != "" {
		t.Error("missing on status: there is one")
	}

	g := New(Options{Location: Downgrade})
	s := httptest.NewTLSServer(g)
	defer s.Close()
	u = &user{t: t, g: g, base: s.URL, client: s.Client()}
	if loc := u.post(); !strings.HasPrefix(loc, "http://") {
		t.Errorf("downgrade: got %q", loc)
	}

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u = serve(t, Options{Location: OtherHost, OtherHost: ln.Addr().String(), Auth: Auth{Scheme: Basic, User: "ci", Password: "secret"}})
	other := &http.Server{Handler: u.g}
	go other.Serve(ln)
	defer other.Close()
	u.header.Set("Authorization", "Basic Y2k6c2VjcmV0")
	loc := u.post()
	if !strings.HasPrefix(loc, "http://"+ln.Addr().String()+"/") {
		t.Fatalf("other host: got %q", loc)
	}
	u.header.Del("Authorization")
	u.want(u.patch(loc, 0, "x"), 202)
	u.noViolations()
	u.header.Set("Authorization", "Basic Y2k6c2VjcmV0")
	u.want(u.status(loc), 204)
	if v := u.g.Violations(); len(v) != 1 || !strings.Contains(v[0], "credentials") {
		t.Errorf("violations: got %q", v)
	}
}

func TestDialects(t *testing.T) {
	u := serve(t, Options{LooseRange: true})
	u.want(u.patch(u.post(), 17, "x"), 202)

	u = serve(t, Options{StaleIsGone: true})
	first := u.post()
	u.want(u.patch(first, 0, "x"), 202)
	u.want(u.status(first), 404)
	u.want(u.patch(first, 1, "x"), 404)

	u = serve(t, Options{OnePatch: true})
	loc := u.want(u.patch(u.post(), 0, "x"), 202).header.Get("Location")
	u.want(u.patch(loc, 1, "y"), 400)
	u.want(u.put(loc, "x"), 201)

	u = serve(t, Options{MaxBody: 3, MinChunk: 2})
	a := u.want(u.do("POST", name+"/blobs/uploads/", "", nil), 202)
	if a.header.Get("OCI-Chunk-Min-Length") != "2" {
		t.Errorf("min chunk: got %v", a.header)
	}
	u.want(u.patch(a.header.Get("Location"), 0, "0123"), 413)
	u.want(u.patch(a.header.Get("Location"), 0, "012"), 202)
}

func TestAuth(t *testing.T) {
	u := serve(t, Options{Auth: Auth{Scheme: Basic, User: "ci", Password: "secret"}})
	a := u.want(u.do("GET", "/v2/", "", nil), 401)
	if !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("challenge: got %q", a.header)
	}
	u.header.Set("Authorization", "Basic Y2k6c2VjcmV0")
	u.want(u.do("GET", "/v2/", "", nil), 200)

	u = serve(t, Options{Auth: Auth{Scheme: Bearer, User: "ci", Password: "secret", TokenRequests: 2}})
	a = u.want(u.do("POST", name+"/blobs/uploads/", "", nil), 401)
	want := fmt.Sprintf(`Bearer realm="%s/token",service="scripted",scope="repository:team/app:pull,push"`, u.base)
	if got := a.header.Get("WWW-Authenticate"); got != want {
		t.Errorf("challenge: got %s, want %s", got, want)
	}
	const ask = "/token?service=scripted&scope=repository:team/app:pull,push"
	u.want(u.do("GET", ask, "", nil), 401)
	login := func() {
		u.header.Set("Authorization", "Basic Y2k6c2VjcmV0")
		a := u.want(u.do("GET", ask, "", nil), 200)
		var answer struct{ Token string }
		if err := json.Unmarshal([]byte(a.body), &answer); err != nil {
			t.Fatal(err)
		}
		u.header.Set("Authorization", "Bearer "+answer.Token)
	}
	login()
	u.want(u.do("POST", "/v2/other/blobs/uploads/", "", nil), 401) // not in the scope
	loc := u.post()
	loc = u.want(u.patch(loc, 0, "x"), 202).header.Get("Location")
	a = u.want(u.put(loc, "x"), 401)
	if !strings.Contains(a.header.Get("WWW-Authenticate"), "invalid_token") {
		t.Errorf("worn out token: got %q", a.header)
	}
	login()
	u.want(u.put(loc, "x"), 201)
	if q := u.g.Requests()[0]; q.Authorized || q.N != 0 {
		t.Errorf("log: got %+v", q)
	}
}

// script intercepts the first request of a kind.
func script(k Kind, a Action) Options {
	return Options{Intercept: func(q Request) Action {
		if q.Kind == k && q.Seq == 1 {
			return a
		}
		return Action{}
	}}
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)
}

func TestActions(t *testing.T) {
	t.Run("before", func(t *testing.T) {
		u := serve(t, script(Patch, Action{Before: 503, Header: http.Header{"Retry-After": {"7"}}}))
		loc := u.post()
		a := u.want(u.patch(loc, 0, "x"), 503)
		if a.header.Get("Retry-After") != "7" || a.header.Get("Location") != "" {
			t.Errorf("got %v", a.header)
		}
		u.want(u.patch(loc, 0, "x"), 202)
	})
	t.Run("after", func(t *testing.T) {
		u := serve(t, script(Patch, Action{After: 502}))
		loc := u.post()
		a := u.want(u.patch(loc, 0, "x"), 502)
		if a.header.Get("Location") != "" {
			t.Errorf("got %v", a.header)
		}
		u.want(u.patch(loc, 0, "x"), 416) // it was stored
	})
	t.Run("before reset", func(t *testing.T) {
		u := serve(t, script(Put, Action{BeforeReset: true}))
		loc := u.want(u.patch(u.post(), 0, "x"), 202).header.Get("Location")
		if a := u.put(loc, "x"); !isReset(a.err) {
			t.Errorf("got %v", a)
		}
		u.want(u.put(loc, "x"), 201)
	})
	t.Run("after reset", func(t *testing.T) {
		u := serve(t, script(Put, Action{AfterReset: true}))
		loc := u.want(u.patch(u.post(), 0, "x"), 202).header.Get("Location")
		if a := u.put(loc, "x"); !isReset(a.err) {
			t.Errorf("got %v", a)
		}
		u.want(u.put(loc, "x"), 404)
		u.want(u.do("HEAD", name+"/blobs/"+digestOf("x"), "", nil), 200)
	})
	t.Run("break body", func(t *testing.T) {
		for _, limit := range []int64{0, 3, 10, 99} {
			u := serve(t, script(Patch, Action{BreakBody: true, BodyLimit: limit}))
			loc := u.post()
			if a := u.patch(loc, 0, "0123456789"); !isReset(a.err) {
				t.Errorf("limit %d: got %v", limit, a)
			}
			want := fmt.Sprintf("0-%d", max(min(limit, 10)-1, 0))
			if got := u.status(loc).header.Get("Range"); got != want {
				t.Errorf("limit %d: got %s, want %s", limit, got, want)
			}
		}
	})
	t.Run("partial", func(t *testing.T) {
		u := serve(t, script(Patch, Action{Partial: true, BodyLimit: 4}))
		a := u.want(u.patch(u.post(), 0, "0123456789"), 202)
		if got := a.header.Get("Range"); got != "0-3" {
			t.Errorf("got %s", got)
		}
		a = u.want(u.patch(a.header.Get("Location"), 4, "456789"), 202)
		u.want(u.put(a.header.Get("Location"), "0123456789"), 201)
		if q := u.g.Requests()[1]; q.Body != 4 {
			t.Errorf("log: got %+v", q)
		}
	})
	t.Run("restart", func(t *testing.T) {
		o := script(Patch, Action{Restart: true})
		o.Auth = Auth{Scheme: Bearer}
		u := serve(t, o)
		login := func() {
			var answer struct{ Token string }
			a := u.want(u.do("GET", "/token?scope=repository:team/app:pull,push", "", nil), 200)
			if err := json.Unmarshal([]byte(a.body), &answer); err != nil {
				t.Fatal(err)
			}
			u.header.Set("Authorization", "Bearer "+answer.Token)
		}
		login()
		loc := u.post()
		u.want(u.patch(loc, 0, "x"), 400)
		u.want(u.status(loc), 401)
		login()
		u.want(u.status(loc), 400)
		u.want(u.patch(u.post(), 0, "x"), 202)
	})
	t.Run("page", func(t *testing.T) {
		u := serve(t, script(Post, Action{Before: 200, Body: []byte("<html>")}))
		if a := u.want(u.do("POST", name+"/blobs/uploads/", "", nil), 200); a.body != "<html>" {
			t.Errorf("got %v", a)
		}
	})
	t.Run("forget session", func(t *testing.T) {
		u := serve(t, script(Patch, Action{ForgetSession: true}))
		loc := u.post()
		u.want(u.patch(loc, 0, "x"), 404)
		u.want(u.status(loc), 404)
		u = serve(t, script(Post, Action{ForgetSession: true}))
		u.want(u.patch(u.post(), 0, "x"), 404)
		u.want(u.patch(u.post(), 0, "x"), 202)
	})
}

func TestViolations(t *testing.T) {
	for _, tc := range []struct {
		what string
		do   func(u *user)
	}{
		{"no Content-Range", func(u *user) {
			at := u.post()
			u.do("PATCH", at, "", strings.NewReader("x"))
			u.do("PATCH", at, "", strings.NewReader("x"))
		}},
		{"not first-last", func(u *user) { u.do("PATCH", u.post(), "bytes 0-0/*", strings.NewReader("x")) }},
		{"chunked", func(u *user) { u.do("PATCH", u.post(), "0-0", struct{ io.Reader }{strings.NewReader("x")}) }},
		{"no Content-Length", func(u *user) { u.do("PATCH", u.post(), "0-0", struct{ io.Reader }{strings.NewReader("x")}) }},
		{"User-Agent", func(u *user) { u.header.Set("User-Agent", "curl/8"); u.do("GET", "/v2/", "", nil) }},
		{"different bytes", func(u *user) {
			// The old writer is still there when the new one begins.
			loc := u.post()
			r, w := io.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				req, _ := http.NewRequest("PATCH", loc, r)
				req.ContentLength = 4
				req.Header = http.Header{"Content-Range": {"0-3"}, "User-Agent": {"rpush/1"}}
				if res, err := u.client.Do(req); err == nil {
					res.Body.Close()
				}
			}()
			w.Write([]byte("01"))
			for u.status(loc).header.Get("Range") != "0-1" {
				time.Sleep(time.Millisecond)
			}
			u.want(u.patch(u.status(loc).header.Get("Location"), 2, "xy"), 202)
			w.Write([]byte("23"))
			w.Close()
			<-done
		}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			u := serve(t, Options{UserAgent: "rpush/"})
			u.header.Set("User-Agent", "rpush/1")
			tc.do(u)
			if v := u.g.Violations(); !strings.Contains(strings.Join(v, "\n"), tc.what) {
				t.Errorf("got %q, want %q among them", v, tc.what)
			}
		})
	}
}

// TestVirtualTime runs delays and a slow commit in a bubble.
func TestVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		ln, err := n.Listen("registry.test:80")
		if err != nil {
			t.Fatal(err)
		}
		g := New(Options{Intercept: func(q Request) Action {
			switch {
			case q.Kind == Post:
				return Action{DelayBefore: time.Minute}
			case q.Kind == Patch && q.N == 1:
				return Action{DelayAfter: time.Hour}
			case q.Kind == Put:
				return Action{SlowCommit: 10 * time.Second}
			case q.Kind == Ping:
				return Action{DelayBefore: 1000 * time.Hour}
			}
			return Action{}
		}})
		srv := &http.Server{Handler: g}
		go srv.Serve(ln)
		tr := &http.Transport{DialContext: n.Dial}
		u := &user{t: t, g: g, base: "http://registry.test:80", client: &http.Client{Transport: tr}}

		begin := time.Now()
		loc := u.post()
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("POST took %v", d)
		}
		begin = time.Now()
		loc = u.want(u.patch(loc, 0, "x"), 202).header.Get("Location")
		if d := time.Since(begin); d != time.Hour {
			t.Errorf("PATCH took %v", d)
		}
		if a := u.put(loc, "x"); !errors.Is(a.err, syscall.ECONNRESET) {
			t.Errorf("PUT: got %v", a)
		}
		blob := name + "/blobs/" + digestOf("x")
		u.want(u.status(loc), 404)
		u.want(u.do("HEAD", blob, "", nil), 404)
		time.Sleep(10 * time.Second)
		if got := u.want(u.do("GET", blob, "", nil), 200); got.body != "x" {
			t.Errorf("blob: got %q", got.body)
		}

		// A client that gives up, and one left hanging at the end.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", u.base+"/v2/", nil)
		if _, err := u.client.Do(req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("impatient: got %v", err)
		}
		go u.client.Get(u.base + "/v2/")
		synctest.Wait()
		g.Close()
		tr.CloseIdleConnections()
		srv.Close()
		time.Sleep(time.Second)
		synctest.Wait()
	})
}

func TestSHA512(t *testing.T) {
	u := serve(t, Options{})
	d := sum("sha512:", []byte("x"))
	u.want(u.do("PUT", u.post()+"&digest="+d, "", bytes.NewReader([]byte("x"))), 201)
}
