// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/owndir"
	"github.com/rpush-go/rpush/internal/tempfile"
)

// acceptedFor is how long an upload that nobody uses is kept, as registries do.
const acceptedFor = 72 * time.Hour

// acceptedIdle is how long nobody has used an upload that is forgotten if others
// need its room.
const acceptedIdle = time.Hour

// maxAccepted bounds the uploads that are open at once.
const maxAccepted = 16384

const (
	acceptedMeta = ".json"
	acceptedData = ".data"
	acceptedLock = "lock"
)

// ErrDirInUse says that another gateway uses ServerOptions.AcceptDir.
var ErrDirInUse = errors.New("another gateway uses this directory")

var (
	errNoUpload = errors.New("the gateway does not know this upload")
	errNoRoom   = errors.New("the gateway has no room for more of this upload now")
	errDisk     = errors.New("the gateway cannot read or write what it keeps of this upload")
)

// accepted is what a gateway at the registry's side has received of uploads that
// are not committed yet. It is a directory with two files for each upload: the
// bytes, whose number is the offset, and what the upload is of. So uploads survive
// the end of the process. It is safe for concurrent use.
type accepted struct {
	dir   string
	limit int64 // bytes of all uploads
	lock  *flock.Flock

	mu      sync.Mutex
	uploads map[string]*acceptedUpload
	used    int64
	swept   time.Time
}

// acceptedUpload is one upload.
type acceptedUpload struct {
	a  *accepted
	id string
	// scope is the registry and the repository.
	scope string

	writer chan struct{} // held by the request that appends or commits

	mu        sync.Mutex
	size      int64
	used      time.Time
	interrupt func() // ends the request that holds writer; nil if there is none
	// committing says that the bytes are on their way to the registry. They go on
	// if the client breaks off.
	committing bool
	gone       bool
	changed    chan struct{} // closed when the upload changes; nil if nobody waits

	// session is the one that the registry opened for the client, until something
	// is sent to it.
	session *registrySession
	handOn  *handOn // nil unless the upload is handed on as it comes

	put acceptedPut // used by the holder of writer alone
}

// registrySession is a session at the registry that nothing was sent to yet.
type registrySession struct {
	at *url.URL
	as *onBehalf
}

// acceptedPut is a PUT that brought bytes at an offset.
type acceptedPut struct {
	offset, length int64
	digest         digest.Digest
}

type acceptedFile struct {
	Version int    `json:"version"`
	Scope   string `json:"scope"`
}

// openAccepted takes up what an earlier process left in dir.
func openAccepted(dir string, limit int64) (*accepted, error) {
	path, err := owndir.Make(dir, owndir.Accepted)
	if err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(path, acceptedLock), flock.SetPermissions(0o600))
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, errors.Join(err, lock.Close())
	case !locked:
		return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrDirInUse), lock.Close())
	}
	a := &accepted{dir: path, limit: limit, lock: lock, uploads: map[string]*acceptedUpload{}}
	if err := a.load(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	a.sweep()
	return a, nil
}

// load reads what an earlier process left, and removes what is not whole.
func (a *accepted) load() error {
	names, err := os.ReadDir(a.dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		id, isMeta := strings.CutSuffix(e.Name(), acceptedMeta)
		if !isMeta {
			if id, ok := strings.CutSuffix(e.Name(), acceptedData); ok && isAcceptedID(id) {
				if _, err := os.Lstat(a.path(id, acceptedMeta)); errors.Is(err, fs.ErrNotExist) {
					a.remove(id)
				}
			}
			continue
		}
		if !isAcceptedID(id) {
			continue
		}
		var f acceptedFile
		b, err := os.ReadFile(a.path(id, acceptedMeta))
		if err == nil {
			err = json.Unmarshal(b, &f)
		}
		st, statErr := os.Stat(a.path(id, acceptedData))
		if err != nil || statErr != nil || f.Version != 1 || f.Scope == "" {
			a.remove(id)
			continue
		}
		u := &acceptedUpload{a: a, id: id, scope: f.Scope, writer: make(chan struct{}, 1), size: st.Size(), used: st.ModTime()}
		a.uploads[id] = u
		a.used += u.size
	}
	return nil
}

func isAcceptedID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == 16 && hex.EncodeToString(b) == id
}

func (a *accepted) path(id, ext string) string { return filepath.Join(a.dir, id+ext) }

func (a *accepted) remove(id string) {
	_ = os.Remove(a.path(id, acceptedMeta)) // what stays is removed at the next start
	_ = os.Remove(a.path(id, acceptedData))
}

// sweep forgets uploads that nobody has used for long.
func (a *accepted) sweep() {
	a.mu.Lock()
	var old []*acceptedUpload
	if now := time.Now(); now.Sub(a.swept) > time.Hour {
		a.swept = now
		for _, u := range a.uploads {
			if u.idle(now) > acceptedFor {
				old = append(old, u)
			}
		}
	}
	a.mu.Unlock()
	for _, u := range old {
		u.forgetIdle(acceptedFor)
	}
}

// makeRoom forgets the upload that nobody has used for the longest time, and more
// than acceptedIdle. It reports false if there is none.
func (a *accepted) makeRoom() bool {
	a.mu.Lock()
	var oldest *acceptedUpload
	longest, now := acceptedIdle, time.Now()
	for _, u := range a.uploads {
		if d := u.idle(now); d > longest {
			oldest, longest = u, d
		}
	}
	a.mu.Unlock()
	return oldest != nil && oldest.forgetIdle(acceptedIdle)
}

// forgetIdle removes the upload unless somebody uses it or has done so since.
func (u *acceptedUpload) forgetIdle(least time.Duration) bool {
	select {
	case u.writer <- struct{}{}:
		defer func() { <-u.writer }()
	default:
		return false
	}
	if u.idle(time.Now()) <= least {
		return false
	}
	u.forget()
	return true
}

func (u *acceptedUpload) idle(now time.Time) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.interrupt != nil || u.committing {
		return 0
	}
	return now.Sub(u.used)
}

// open begins an upload. Its name cannot be guessed.
func (a *accepted) open(scope string) (*acceptedUpload, error) {
	a.sweep()
	var raw [16]byte
	rand.Read(raw[:])
	u := &acceptedUpload{a: a, id: hex.EncodeToString(raw[:]), scope: scope, writer: make(chan struct{}, 1), used: time.Now()}
	b, err := json.Marshal(acceptedFile{1, scope})
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.uploads) >= maxAccepted {
		a.mu.Unlock()
		made := a.makeRoom()
		a.mu.Lock()
		if !made {
			return nil, errNoRoom
		}
	}
	if err := os.WriteFile(a.path(u.id, acceptedData), nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(a.path(u.id, acceptedMeta), b, 0o600); err != nil {
		a.remove(u.id)
		return nil, err
	}
	a.uploads[u.id] = u
	return u, nil
}

// get finds an upload of a repository.
func (a *accepted) get(id, scope string) (*acceptedUpload, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if u := a.uploads[id]; u != nil && u.scope == scope {
		return u, nil
	}
	return nil, errNoUpload
}

// take makes the caller the one request that may change the upload. A request
// that has it already is interrupted: its client has given it up, or would not
// send another. interrupt does the same for the caller.
func (u *acceptedUpload) take(ctx context.Context, interrupt func()) (done func(), err error) {
	u.stop()
	select {
	case u.writer <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone {
		<-u.writer
		return nil, errNoUpload
	}
	u.interrupt = interrupt
	return func() {
		u.mu.Lock()
		u.interrupt, u.committing, u.used = nil, false, time.Now()
		u.mu.Unlock()
		<-u.writer
	}, nil
}

// commit notes that the request which has taken the upload commits it.
func (u *acceptedUpload) commit() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.interrupt, u.committing = nil, true
}

func (u *acceptedUpload) isCommitting() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.committing
}

// notify wakes those who wait for the upload to change.
func (u *acceptedUpload) notify() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.changed != nil {
		close(u.changed)
		u.changed = nil
	}
}

// await returns the size of the upload once it is more than offset, or final says
// that it will not grow.
func (u *acceptedUpload) await(ctx context.Context, offset int64, final func() bool) (int64, error) {
	for {
		u.mu.Lock()
		if u.changed == nil {
			u.changed = make(chan struct{})
		}
		size, changed := u.size, u.changed
		u.mu.Unlock()
		if size > offset || final() {
			return size, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// opened notes the session that the registry has opened for the upload.
func (u *acceptedUpload) opened(at *url.URL, as *onBehalf) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.session = &registrySession{at, as}
}

// takeSession returns the session that nothing was sent to, once.
func (u *acceptedUpload) takeSession() *registrySession {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.session
	u.session = nil
	return s
}

// takeHandOn returns what hands the upload on, once. The caller stops it, or
// lets it finish.
func (u *acceptedUpload) takeHandOn() *handOn {
	u.mu.Lock()
	defer u.mu.Unlock()
	h := u.handOn
	u.handOn = nil
	return h
}

// stop interrupts the request that changes the upload, if it may be.
func (u *acceptedUpload) stop() {
	u.mu.Lock()
	f := u.interrupt
	u.mu.Unlock()
	if f != nil {
		f()
	}
}

// offset is how many bytes are kept.
func (u *acceptedUpload) offset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.size
}

// append keeps what comes, also if it breaks off. The caller has taken the
// upload.
func (u *acceptedUpload) append(r io.Reader) error {
	f, err := os.OpenFile(u.a.path(u.id, acceptedData), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	defer f.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			for !u.a.room(f, int64(n)) {
				if !u.a.makeRoom() {
					return errNoRoom
				}
			}
			at := u.offset()
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				u.a.giveBack(int64(n))
				return fmt.Errorf("%w: %w", errNoRoom, err)
			}
			u.mu.Lock()
			u.size = at + int64(n)
			u.mu.Unlock()
			u.notify()
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// begin prepares for the body of a request that begins where the upload stands.
// A PUT that was refused after its body was kept may come again with this body,
// by a client that does not ask for the offset: the upload goes back to where the
// body began. Whatever else such a client may have left to send is shorter. The
// caller has taken the upload.
func (u *acceptedUpload) begin(next acceptedPut) error {
	last := u.put
	u.put = next
	if last.length <= 0 || next.length != last.length || next.digest != last.digest {
		return nil
	}
	u.put.offset = last.offset
	if h := u.takeHandOn(); h != nil { // it may have sent what is cut off
		h.stop()
	}
	if err := os.Truncate(u.a.path(u.id, acceptedData), last.offset); err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	u.mu.Lock()
	cut := u.size - last.offset
	u.size = last.offset
	u.mu.Unlock()
	u.a.giveBack(cut)
	return nil
}

// room takes n bytes of what all uploads may hold. A sixteenth as much as they hold
// stays free on the disk.
func (a *accepted) room(f *os.File, n int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used+n > a.limit {
		return false
	}
	if free, ok := tempfile.Free(f); ok && free < n+a.used/16 {
		return false
	}
	a.used += n
	return true
}

func (a *accepted) giveBack(n int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.used -= n
}

// read opens the bytes from offset.
func (u *acceptedUpload) read(offset int64) (*os.File, error) {
	f, err := os.Open(u.a.path(u.id, acceptedData))
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// differs reports whether what is kept can be read, and has another digest.
func (u *acceptedUpload) differs(dgst digest.Digest) bool {
	f, err := u.read(0)
	if err != nil {
		return false
	}
	defer f.Close()
	v := dgst.Verifier()
	n, err := io.Copy(v, f)
	return err == nil && n == u.offset() && !v.Verified()
}

// forget removes the upload.
func (u *acceptedUpload) forget() {
	u.mu.Lock()
	if u.gone {
		u.mu.Unlock()
		return
	}
	u.gone = true
	size := u.size
	u.mu.Unlock()
	if h := u.takeHandOn(); h != nil {
		h.stop()
	}
	if rs := u.takeSession(); rs != nil {
		go rs.as.s.cancelAtRegistry(rs.as, rs.at)
	}
	u.a.mu.Lock()
	delete(u.a.uploads, u.id)
	u.a.used -= size
	u.a.mu.Unlock()
	u.a.remove(u.id)
}
