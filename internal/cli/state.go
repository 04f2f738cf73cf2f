// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/pflag"

	"github.com/rpush-go/rpush/resume"
	"github.com/rpush-go/rpush/resume/redisstore"
)

// state is where open uploads are kept between pushes: a directory, or a Redis
// that several machines share.
type state struct {
	dir    string // --state-dir
	none   bool   // --no-state
	url    string // --state
	key    string // what RPUSH_STATE_KEY holds
	keyAt  string // --state-key-file
	caFile string // --state-ca-file

	// shared is the Redis that url names, nil if it names none.
	shared *redisstore.Store
}

// flags adds those that say where the state is.
func (s *state) flags(f *pflag.FlagSet) {
	f.StringVar(&s.dir, "state-dir", "", "keep open uploads in `DIR`, not in the user's state directory")
	f.StringVar(&s.url, "state", "", "keep them in the Redis at `URL`, for all machines")
	f.StringVar(&s.keyAt, "state-key-file", "", "encrypt them there with the key in `FILE`")
	f.StringVar(&s.caFile, "state-ca-file", "", "trust the certificates in `FILE` for rediss://")
}

func (s *state) contradictions() []contradiction {
	return []contradiction{
		{s.none && s.dir != "", "no-state", "state-dir"},
		{s.none && s.url != "", "no-state", "state"},
		{s.dir != "" && s.url != "", "state-dir", "state"},
	}
}

// check opens the Redis, which connects when the first blob needs it. The URL may
// hold a password, and is never printed.
func (s *state) check(spelled map[string]string) error {
	if dir, ok := strings.CutPrefix(s.url, "file:"); ok {
		if s.dir, s.url = strings.TrimPrefix(dir, "//"), ""; s.dir == "" {
			return fmt.Errorf("%s is file: without a directory", spelled["state"])
		}
	}
	if s.url == "" || s.none {
		return nil
	}
	key, err := s.readKey(spelled)
	if err != nil {
		return err
	}
	var roots *tls.Config
	if s.caFile != "" {
		pem, err := os.ReadFile(s.caFile)
		if err != nil {
			return fmt.Errorf("%s: %w", spelled["state-ca-file"], err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: %s holds no certificate", spelled["state-ca-file"], s.caFile)
		}
		roots = &tls.Config{RootCAs: pool}
	}
	redis.SetLogger(silent{}) // what it says is in the errors, too
	s.shared, err = redisstore.Open(s.url, roots, redisstore.Options{Key: key})
	if err != nil {
		return fmt.Errorf("%s: %s", spelled["state"], strings.TrimPrefix(err.Error(), "redisstore: "))
	}
	return nil
}

// silent drops what go-redis logs to stderr.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// readKey returns the key that encrypts what is kept, empty if there is none.
func (s *state) readKey(spelled map[string]string) ([]byte, error) {
	text, from := s.key, stateKeyVariable
	if s.keyAt != "" {
		from = spelled["state-key-file"]
		f, err := os.Open(s.keyAt)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, 4096))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		if text = strings.TrimSpace(string(b)); text == "" {
			return nil, fmt.Errorf("%s: %s is empty", from, s.keyAt)
		}
	}
	if text = strings.TrimSpace(text); text == "" {
		return nil, nil
	}
	for _, decode := range []func(string) ([]byte, error){hex.DecodeString, base64.StdEncoding.DecodeString} {
		if key, err := decode(text); err == nil && len(key) == redisstore.KeySize {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s holds no key of %d bytes in hex digits or base64: make one with 'openssl rand -hex %d'",
		from, redisstore.KeySize, redisstore.KeySize)
}

// stateKeyVariable holds the key itself. It is no flag, because everyone on a
// machine can read the arguments of a process.
const stateKeyVariable = "RPUSH_STATE_KEY"

// directory is where records are kept if no Redis has them.
func (s *state) directory() (string, error) {
	if s.dir != "" {
		return s.dir, nil
	}
	return resume.StateDir()
}

// store opens what is kept between runs. Without a place for it, the reason is
// said once.
func (a *app) store(o *options) resume.Store {
	switch {
	case o.state.none:
		return resume.NoStore()
	case o.state.shared != nil:
		return o.state.shared
	}
	dir, err := o.state.directory()
	if err != nil {
		a.out.note(noHomeWords(err))
		return resume.NoStore()
	}
	return resume.NewFileStore(dir)
}

// sessionStore is a store that says what it keeps.
type sessionStore interface {
	resume.Store
	// records returns what is kept, the oldest first, and who uploads which of it at
	// this moment, as far as the store knows.
	records(ctx context.Context) (all []resume.Record, holders map[resume.Key]string, err error)
	// prune removes what has expired, and says how much that was.
	prune(now time.Time) (int, error)
}

// sessionStore opens the store of the verb sessions.
func (s *state) sessionStore() (sessionStore, error) {
	if s.shared != nil {
		return redisSessions{s.shared}, nil
	}
	dir, err := s.directory()
	if err != nil {
		return nil, err
	}
	return fileSessions{resume.NewFileStore(dir)}, nil
}

type fileSessions struct{ *resume.FileStore }

func (f fileSessions) records(context.Context) ([]resume.Record, map[resume.Key]string, error) {
	all, err := f.Records()
	return all, nil, err
}

func (f fileSessions) prune(now time.Time) (int, error) { return f.Prune(now) }

type redisSessions struct{ *redisstore.Store }

func (r redisSessions) records(ctx context.Context) ([]resume.Record, map[resume.Key]string, error) {
	sessions, err := r.List(ctx)
	all, holders := make([]resume.Record, len(sessions)), map[resume.Key]string{}
	for i, s := range sessions {
		all[i] = s.Record
		if s.Holder != "" {
			holders[s.Key] = s.Holder
		}
	}
	return all, holders, err
}

// prune has nothing to do: records in Redis expire by themselves.
func (r redisSessions) prune(time.Time) (int, error) { return 0, nil }
