// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"crypto/tls"
	"errors"
	"net/url"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Open connects to the Redis at a URL, when the first operation needs it, and
// returns a Store that Close ends. roots, unless nil, says which certificates and
// names a server with TLS may show.
//
//	redis://USER:PASSWORD@HOST:PORT/DB
//	rediss://HOST                                      TLS
//	unix:///PATH?db=DB                                 a socket
//	redis://SENTINEL:PORT?master_name=NAME&addr=OTHER  behind sentinels
//	redis://NODE:PORT?addr=OTHER                       a cluster
//
// The parameter lease=30s sets Options.LeaseFor if that is 0. Further parameters are
// those of go-redis. No error quotes the URL, because it
// may hold a password.
func Open(rawURL string, roots *tls.Config, o Options) (*Store, error) {
	rawURL, lease, err := cutLease(rawURL)
	if err != nil {
		return nil, err
	}
	if o.LeaseFor == 0 {
		o.LeaseFor = lease
	}
	client, err := connect(rawURL, roots)
	if err != nil {
		return nil, err
	}
	s, err := New(client, o)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return s, nil
}

// Close closes the connections to Redis. Leases that are held expire.
func (s *Store) Close() error { return s.redis.Close() }

// cutLease takes the parameter lease out of a URL.
func cutLease(rawURL string) (string, time.Duration, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", 0, errInvalidURL
	}
	q := u.Query()
	text := q.Get("lease")
	if !q.Has("lease") {
		return rawURL, 0, nil
	}
	lease, err := time.ParseDuration(text)
	if err != nil || lease <= 0 {
		return "", 0, errors.New("redisstore: the lease in the URL is no duration, such as 30s")
	}
	q.Del("lease")
	u.RawQuery = q.Encode()
	return u.String(), lease, nil
}

func connect(rawURL string, roots *tls.Config) (redis.UniversalClient, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errInvalidURL
	}
	set := func(c **tls.Config) {
		if *c != nil && roots != nil {
			name := (*c).ServerName
			*c = roots.Clone()
			(*c).ServerName = name
		}
	}
	q := u.Query()
	switch {
	case u.Scheme != "redis" && u.Scheme != "rediss" && u.Scheme != "unix":
		return nil, errors.New("redisstore: the URL begins with redis://, rediss:// or unix://")
	case u.Scheme != "unix" && u.Host == "":
		return nil, errors.New("redisstore: the URL names no host")
	case q.Has("master_name"):
		opt, err := redis.ParseFailoverURL(rawURL)
		if err != nil {
			return nil, errBadURL
		}
		opt.ContextTimeoutEnabled = true
		set(&opt.TLSConfig)
		return redis.NewFailoverClient(opt), nil
	case q.Has("addr"):
		opt, err := redis.ParseClusterURL(rawURL)
		if err != nil {
			return nil, errBadURL
		}
		opt.ContextTimeoutEnabled = true
		opt.MaintNotificationsConfig = noNotifications()
		set(&opt.TLSConfig)
		return redis.NewClusterClient(opt), nil
	}
	opt, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, errBadURL
	}
	opt.ContextTimeoutEnabled = true
	opt.MaintNotificationsConfig = noNotifications()
	set(&opt.TLSConfig)
	return redis.NewClient(opt), nil
}

// noNotifications keeps a client from asking for notifications about maintenance,
// for which it would start goroutines before it connects.
func noNotifications() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

var errInvalidURL = errors.New("redisstore: the URL is not valid")

var errBadURL = errors.New("redisstore: the URL has a database, a port or a parameter that is not valid")
