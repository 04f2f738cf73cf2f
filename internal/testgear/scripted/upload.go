// SPDX-License-Identifier: Apache-2.0

package scripted

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

var (
	errBroken = errors.New("scripted: body broken off")
	errEnded  = errors.New("scripted: body ended by a gateway")
)

// upload is a session. Its fields are under Registry.mu.
type upload struct {
	id, repo string
	number   int
	data     []byte
	acked    int64 // end of the last acknowledged chunk
	first    int64 // size after the first chunk, for the stuck Range
	patches  int
	chunk    int64 // length of the first chunk
	last     bool  // a smaller one came
	short    bool  // the last chunk was smaller than Options.MinPart
	small    bool  // and one before it
	writers  int   // bodies that began to come in
	received int64 // bytes of all bodies, stored or not
	void     bool  // opened before a restart
	damaged  bool
	whole    bool             // what it holds came without Content-Range: Options.WholeFirst
	spoiled  bool             // and something was added
	states   map[string]int64 // offset each handed out state stands for
	used     map[string]bool  // states that a PATCH or PUT came with
}

// open wants g.mu held.
func (g *Registry) open(repo string) *upload {
	g.sessions++
	u := &upload{id: fmt.Sprintf("session-%04d", g.sessions), repo: repo, number: g.sessions, data: []byte{}, states: map[string]int64{}, used: map[string]bool{}}
	g.uploads[u.id] = u
	if g.o.MaxSessions > 0 && len(g.uploads) > g.o.MaxSessions {
		oldest := u
		for _, v := range g.uploads {
			if v.number < oldest.number {
				oldest = v
			}
		}
		delete(g.uploads, oldest.id)
	}
	return u
}

// describe sets the headers that tell where the session stands. It wants g.mu
// held.
func (x *exchange) describe(u *upload, location bool) {
	g, h := x.g, x.w.Header()
	size := int64(len(u.data))
	h.Set("Docker-Upload-UUID", u.id)
	if location {
		g.states++
		state := fmt.Sprintf("%08x", uint32(g.states)*2654435761) // opaque to the reader
		u.states[state] = size
		path := "/v2/" + u.repo + "/blobs/uploads/" + u.id
		switch g.o.UploadPath {
		case BlobsUpload:
			path = "/v2/" + u.repo + "/blobs/upload/" + u.id
		case ArtifactsUploads:
			path = artifacts + u.repo + "/" + u.id
		}
		if !g.o.OneLocation {
			path += "?_state=" + state
		}
		h.Set("Location", x.absolute(path))
	}
	last, prefix := max(size-1, 0), ""
	switch g.o.Range {
	case NoRange:
		return
	case BytesPrefix:
		prefix = "bytes="
	case OffByOne:
		last = size
	case EmptyMinusOne:
		last = size - 1
	case Beyond:
		last = size + 1<<40
	case Stuck:
		if u.first > 0 {
			last = u.first - 1
		}
	}
	h.Set("Range", fmt.Sprintf("%s0-%d", prefix, last))
}

func (x *exchange) absolute(path string) string {
	scheme, host := "http://", x.r.Host
	if x.r.TLS != nil {
		scheme = "https://"
	}
	switch x.g.o.Location {
	case Relative:
		return path
	case OtherHost:
		host = x.g.o.OtherHost
	case Downgrade:
		scheme = "http://"
	}
	return scheme + host + path
}

// session finds the session of the request, or answers. Writing needs a state
// of the present offset; asking does not, unless stale states are gone.
func (x *exchange) session() *upload {
	g := x.g
	g.mu.Lock()
	u := g.uploads[x.q.Upload]
	if u == nil || u.repo != x.q.Repo {
		g.mu.Unlock()
		x.fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", x.q.Upload)
		return nil
	}
	state := x.r.URL.Query().Get("_state")
	offset, known := u.states[state]
	if g.o.SingleUse && u.used[state] {
		g.mu.Unlock()
		x.fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "this location was used before")
		return nil
	}
	u.used[state] = u.used[state] || x.q.Kind == Patch || x.q.Kind == Put
	stale := (!known || offset != int64(len(u.data))) && !g.o.OneLocation
	void, damaged := u.void && !known, u.damaged
	g.mu.Unlock()
	switch {
	case damaged:
		x.fail(http.StatusInternalServerError, "UNKNOWN", "append to zero-size path unsupported")
		return nil
	case void:
		x.fail(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the state is not of this registry")
		return nil
	case !stale:
		return u
	case g.o.StaleIsGone:
		x.fail(http.StatusNotFound, "BLOB_UPLOAD_INVALID", "not the newest location")
		return nil
	case x.q.Kind == Status:
		return u
	}
	x.fail(http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", "not the newest location")
	return nil
}

func (x *exchange) post() {
	g := x.g
	g.mu.Lock()
	if from := x.r.URL.Query().Get("from"); x.q.Reference != "" && from != "" {
		if b, ok := g.blob(from, x.q.Reference); ok {
			g.repo(x.q.Repo).blobs[x.q.Reference] = b
			g.mu.Unlock()
			x.created("blobs", x.q.Reference)
			return
		}
		if g.o.NoMount != 0 {
			g.mu.Unlock()
			x.fail(g.o.NoMount, "DENIED", "no such repository: "+from)
			return
		}
	}
	u := g.open(x.q.Repo)
	x.q.Session = u.number
	x.describe(u, true)
	if x.act.ForgetSession {
		delete(g.uploads, u.id)
	}
	g.mu.Unlock()
	if g.o.MinChunk > 0 {
		x.w.Header().Set("OCI-Chunk-Min-Length", fmt.Sprint(g.o.MinChunk))
	}
	if g.o.MaxChunk > 0 {
		x.w.Header().Set("OCI-Chunk-Max-Length", fmt.Sprint(g.o.MaxChunk))
	}
	x.reply(http.StatusAccepted, nil)
}

func (x *exchange) status() {
	g := x.g
	switch {
	case g.o.Status == MissingStatus:
		x.fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such endpoint")
		return
	case g.o.Status == NoStatus:
		x.fail(http.StatusBadRequest, "NAME_INVALID", "no such endpoint")
		return
	case g.o.Status == GetOnly && x.r.Method == http.MethodHead:
		x.w.Header().Set("Allow", "GET")
		x.fail(http.StatusMethodNotAllowed, "UNSUPPORTED", "HEAD")
		return
	}
	u := x.session()
	if u == nil {
		return
	}
	g.mu.Lock()
	x.describe(u, g.o.Location != MissingOnStatus)
	g.mu.Unlock()
	x.reply(http.StatusNoContent, nil)
}

func (x *exchange) cancel() {
	u := x.session()
	if u == nil {
		return
	}
	x.g.mu.Lock()
	delete(x.g.uploads, u.id)
	x.g.mu.Unlock()
	x.reply(http.StatusNoContent, nil)
}

// take reads the body into the session at its present end, and reports whether
// the request may be answered.
func (x *exchange) take(u *upload) bool {
	g := x.g
	g.mu.Lock()
	begin := int64(len(u.data))
	g.mu.Unlock()
	if h := x.r.Header.Get("Content-Range"); h != "" && !g.o.LooseRange {
		m := rangeForm.FindStringSubmatch(h)
		switch {
		case m == nil:
			x.fail(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "Content-Range "+h)
			return false
		case x.q.Start != begin:
			text := "Content-Range " + h
			if g.o.SaysOffset {
				text = fmt.Sprintf("First byte of the layer part is %d instead of %d", x.q.Start, begin)
			}
			x.fail(cmp.Or(g.o.WrongStart, http.StatusRequestedRangeNotSatisfiable), "RANGE_INVALID", text)
			return false
		case x.q.Length >= 0 && fmt.Sprint(begin+x.q.Length-1) != m[2]:
			x.fail(http.StatusBadRequest, "SIZE_INVALID", "Content-Range "+h)
			return false
		}
	}
	g.mu.Lock()
	u.writers++
	writer := u.writers
	g.mu.Unlock()
	end := begin
	var held []byte
	err := x.receive(func(b []byte) {
		g.mu.Lock()
		u.received += int64(len(b))
		if u.writers != writer && x.q.Kind == Patch {
			x.q.Late += int64(len(b))
		}
		g.mu.Unlock()
		if g.o.Store == Boundary {
			held = append(held, b...)
			return
		}
		g.mu.Lock()
		x.store(u, end, b)
		g.mu.Unlock()
		end += int64(len(b))
	})
	ended := err == nil && x.act.EndBody != 0 || errors.Is(err, errEnded)
	g.mu.Lock()
	u.damaged = u.damaged || x.act.DamageSession
	if err != nil || ended {
		switch {
		case g.o.Store == Fragile:
			delete(g.uploads, u.id)
		case g.o.Store == Keep && g.o.PartSize > 0:
			u.data = u.data[:max(u.acked, int64(len(u.data))/g.o.PartSize*g.o.PartSize)]
		}
		g.mu.Unlock()
		if ended {
			if !x.sleep(g.o.EndsAfter) {
				x.reset()
				return false
			}
			clear(x.w.Header())
			x.write(x.act.EndBody, []byte("<html>"))
			return false
		}
		x.reset() // nobody is left to hear an answer
		return false
	}
	if g.o.Store == Boundary {
		x.store(u, begin, held)
		end += int64(len(held))
	}
	u.acked = max(u.acked, end)
	if x.q.Length > 0 {
		u.spoiled = u.spoiled || u.whole
		u.whole = g.o.WholeFirst && x.r.Header.Get("Content-Range") == ""
	}
	if x.q.Kind == Patch {
		u.small = u.small || u.short
		u.short = end-begin < g.o.MinPart
	}
	if u.first == 0 {
		u.first = end
	}
	gone := g.uploads[u.id] != u
	g.mu.Unlock()
	if gone {
		x.fail(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", u.id)
	}
	return !gone
}

// store writes b at off. Two requests may write the same range, as on
// distribution, if they write the same bytes. It wants g.mu held.
func (x *exchange) store(u *upload, off int64, b []byte) {
	size := int64(len(u.data))
	if x.g.uploads[u.id] != u || off > size {
		return // the session is gone, or was cut back under a late writer
	}
	n := min(int64(len(b)), size-off)
	if !bytes.Equal(u.data[off:off+n], b[:n]) {
		x.g.violate("%s %s: different bytes written over [%d, %d)", x.q.Method, x.q.Path, off, off+n)
		copy(u.data[off:], b[:n])
	}
	u.data = append(u.data, b[n:]...)
}

func (x *exchange) patch() {
	u := x.session()
	if u == nil {
		return
	}
	g := x.g
	g.mu.Lock()
	u.patches++
	refused := g.o.OnePatch && u.patches > 1
	g.mu.Unlock()
	if refused {
		x.fail(http.StatusBadRequest, "UNSUPPORTED", "only one PATCH")
		return
	}
	if g.o.EqualChunks {
		g.mu.Lock()
		unequal := u.chunk > 0 && (u.last || x.q.Length > u.chunk)
		if unequal {
			x.describe(u, true)
		}
		g.mu.Unlock()
		if unequal {
			x.fail(http.StatusRequestedRangeNotSatisfiable, "RANGE_ERROR", "chunks must be of equal size")
			return
		}
	}
	if !x.take(u) {
		return
	}
	g.mu.Lock()
	u.last = u.last || u.chunk > 0 && x.q.Length < u.chunk
	u.chunk = cmp.Or(u.chunk, x.q.Length)
	x.describe(u, true)
	g.mu.Unlock()
	x.reply(cmp.Or(g.o.PatchStatus, http.StatusAccepted), nil)
}

func (x *exchange) put() {
	u := x.session()
	if u == nil {
		return
	}
	digest := x.q.Reference
	if !digestForm.MatchString(digest) {
		x.fail(http.StatusBadRequest, "DIGEST_INVALID", digest)
		return
	}
	if refusal := x.g.o.NoPutBody; refusal != 0 && x.q.Length > 0 {
		x.fail(refusal, "BLOB_UNKNOWN", "a body")
		return
	}
	if !x.take(u) {
		return
	}
	g := x.g
	g.mu.Lock()
	if u.damaged {
		g.mu.Unlock()
		x.reset()
		return
	}
	if u.small {
		g.mu.Unlock()
		x.fail(http.StatusInternalServerError, "UNKNOWN", "")
		return
	}
	if g.o.NoEmpty != 0 && len(u.data) == 0 {
		g.mu.Unlock()
		x.fail(g.o.NoEmpty, "BLOB_UPLOAD_INVALID", "the upload does not have any parts")
		return
	}
	if got := sum(digest, u.data); got != digest || u.spoiled {
		g.mu.Unlock()
		x.fail(http.StatusBadRequest, "DIGEST_INVALID", "content is "+got)
		return
	}
	b := blob{data: u.data}
	if x.act.SlowCommit > 0 {
		b.from = time.Now().Add(x.act.SlowCommit)
		x.act.AfterReset = true
	}
	delete(g.uploads, u.id)
	if _, there := g.blob(u.repo, digest); !there {
		g.repo(u.repo).blobs[digest] = b
	}
	g.mu.Unlock()
	x.created("blobs", digest)
}

func (x *exchange) created(what, digest string) {
	x.w.Header().Set("Location", x.absolute("/v2/"+x.q.Repo+"/"+what+"/"+digest))
	x.w.Header().Set("Docker-Content-Digest", digest)
	x.reply(http.StatusCreated, nil)
}

// sum is the digest of b by the algorithm of like.
func sum(like string, b []byte) string {
	if strings.HasPrefix(like, "sha512:") {
		s := sha512.Sum512(b)
		return "sha512:" + hex.EncodeToString(s[:])
	}
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}
