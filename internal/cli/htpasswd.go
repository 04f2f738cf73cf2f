// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// htpasswd holds the users of a file that Apache's htpasswd -B writes. It is safe
// for concurrent use.
type htpasswd struct {
	users map[string][]byte // bcrypt
	// stranger is checked for users that do not exist, so that they take as long.
	stranger []byte
	key      []byte
	slots    chan struct{} // bounds what guessing passwords costs

	mu    sync.Mutex
	known map[[sha256.Size]byte]bool // users with passwords that were right
}

const (
	// checksAtOnce bounds the passwords that are checked at the same time: bcrypt
	// is slow on purpose.
	checksAtOnce = 2
	maxKnown     = 4096
	// checkWait is how long a password may wait for others.
	checkWait = 5 * time.Second
)

var errChecksBusy = errors.New("too many passwords are being checked")

func readHtpasswd(file string) (*htpasswd, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := &htpasswd{users: map[string][]byte{}, key: make([]byte, 32), slots: make(chan struct{}, checksAtOnce), known: map[[sha256.Size]byte]bool{}}
	rand.Read(h.key)
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		user, hash, ok := strings.Cut(line, ":")
		if _, err := bcrypt.Cost([]byte(hash)); !ok || user == "" || err != nil {
			return nil, fmt.Errorf("%s: line %d is not USER:BCRYPT, as htpasswd -B writes it", file, n)
		}
		h.users[user] = []byte(hash)
		h.stranger = []byte(hash)
	}
	switch {
	case lines.Err() != nil:
		return nil, lines.Err()
	case len(h.users) == 0:
		return nil, errors.New(file + " has no user")
	}
	return h, nil
}

// check reports whether the password is the user's. One that was right once is
// not computed again. It fails if too many others are being checked.
func (h *htpasswd) check(ctx context.Context, user, password string) (bool, error) {
	mac := hmac.New(sha256.New, h.key)
	fmt.Fprintf(mac, "%q %q", user, password)
	key := [sha256.Size]byte(mac.Sum(nil))
	h.mu.Lock()
	right := h.known[key]
	h.mu.Unlock()
	if right {
		return true, nil
	}
	hash, exists := h.users[user]
	if !exists {
		hash = h.stranger
	}
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return false, errChecksBusy
	}
	err := bcrypt.CompareHashAndPassword(hash, []byte(password))
	<-h.slots
	if err != nil || !exists {
		return false, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) >= maxKnown {
		clear(h.known)
	}
	h.known[key] = true
	return true, nil
}

// freshHtpasswd is a file of passwords that is read again when it has changed. As
// long as it cannot be read, or is wrong, the last one that was right counts.
type freshHtpasswd struct {
	file string
	warn func(error)

	mu  sync.Mutex
	now *htpasswd
	was fs.FileInfo // when it was last read, or could not be
}

func newFreshHtpasswd(file string, warn func(error)) (*freshHtpasswd, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	h, err := readHtpasswd(file)
	if err != nil {
		return nil, err
	}
	return &freshHtpasswd{file: file, warn: warn, now: h, was: st}, nil
}

func (f *freshHtpasswd) check(ctx context.Context, user, password string) (bool, error) {
	return f.current().check(ctx, user, password)
}

func (f *freshHtpasswd) current() *htpasswd {
	f.mu.Lock()
	defer f.mu.Unlock()
	st, err := os.Stat(f.file)
	if err != nil || os.SameFile(st, f.was) && st.ModTime().Equal(f.was.ModTime()) && st.Size() == f.was.Size() {
		return f.now
	}
	f.was = st
	h, err := readHtpasswd(f.file)
	if err != nil {
		f.warn(err)
		return f.now
	}
	f.now = h
	return h
}
