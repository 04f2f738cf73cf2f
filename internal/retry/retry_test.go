// SPDX-License-Identifier: Apache-2.0

package retry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/internal/wire"
)

// run runs op in virtual time and says how long it took.
func run(t *testing.T, p Policy, op func(int, *Loop) error) (took time.Duration, calls int, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err = p.Do(t.Context(), func(_ context.Context, l *Loop) error {
			calls++
			return op(calls, l)
		})
		took = time.Since(began)
	})
	return took, calls, err
}

func TestSuccessAfterBreaks(t *testing.T) {
	took, calls, err := run(t, Policy{For: time.Minute}, func(n int, _ *Loop) error {
		if n < 4 {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	// The first try again comes at once, then 0.5 s, 1 s.
	if err != nil || calls != 4 || took != 1500*time.Millisecond {
		t.Errorf("got %v after %d calls in %s, want nil, 4, 1.5s", err, calls, took)
	}
}

func TestBudgetIsTimeWithoutProgress(t *testing.T) {
	took, _, err := run(t, Policy{For: 20 * time.Second}, func(n int, l *Loop) error {
		if n <= 50 {
			time.Sleep(5 * time.Second) // work that gains something
			l.Progress()
		}
		return io.EOF
	})
	if want := 50*5*time.Second + 20*time.Second; took != want {
		t.Errorf("took %s, want %s", took, want)
	}
	var ex *Exhausted
	if !errors.Is(err, protocol.ErrInterrupted) || !errors.Is(err, io.EOF) || !errors.As(err, &ex) || ex.Since != 20*time.Second {
		t.Errorf("error is %v", err)
	}
}

func TestBudgetBeforeTheFirstAnswer(t *testing.T) {
	var answered atomic.Bool
	p := Policy{For: 10 * time.Minute, First: 30 * time.Second, Answered: &answered}
	if took, _, err := run(t, p, func(int, *Loop) error { return io.EOF }); took != 30*time.Second || !errors.Is(err, protocol.ErrInterrupted) {
		t.Errorf("got %v after %s, want 30s", err, took)
	}
	answered.Store(true)
	if took, _, err := run(t, p, func(int, *Loop) error { return io.EOF }); took != 10*time.Minute || !errors.Is(err, protocol.ErrInterrupted) {
		t.Errorf("got %v after %s, want 10m", err, took)
	}
}

func TestUnknownFailure(t *testing.T) {
	for _, failure := range []error{errors.New("malformed HTTP response"), &net.DNSError{IsNotFound: true}} {
		var answered atomic.Bool
		p := Policy{For: time.Minute, First: 30 * time.Second, Answered: &answered}
		if _, calls, err := run(t, p, func(int, *Loop) error { return failure }); calls != 1 || !errors.Is(err, protocol.ErrEndpoint) {
			t.Errorf("%v before the first answer: %v after %d calls, want ErrEndpoint after 1", failure, err, calls)
		}
		answered.Store(true)
		if _, calls, err := run(t, p, func(int, *Loop) error { return failure }); calls < 2 || !errors.Is(err, protocol.ErrInterrupted) {
			t.Errorf("%v later: %v after %d calls, want ErrInterrupted after many", failure, err, calls)
		}
	}
}

func TestFinalFailure(t *testing.T) {
	final := protocol.Kind(protocol.ErrRefused, io.EOF)
	if took, calls, err := run(t, Policy{For: time.Minute}, func(int, *Loop) error { return final }); calls != 1 || took != 0 || !errors.Is(err, protocol.ErrRefused) {
		t.Errorf("got %v after %d calls in %s", err, calls, took)
	}
}

func retryAfter(v string) error {
	return protocol.Unexpected(&wire.Answer{Status: 503, Header: http.Header{"Retry-After": {v}}}, time.Now())
}

func TestRetryAfter(t *testing.T) {
	var waits []time.Duration
	p := Policy{For: time.Minute, Waiting: func(_ error, wait time.Duration) { waits = append(waits, wait) }}
	took, _, err := run(t, p, func(n int, _ *Loop) error {
		if n == 1 {
			return retryAfter("17")
		}
		return nil
	})
	if err != nil || took != 17*time.Second || len(waits) != 1 || waits[0] != 17*time.Second {
		t.Errorf("got %v after %s, waits %v; want 17s", err, took, waits)
	}
	// More than there is time for: no use in waiting.
	if took, _, err := run(t, p, func(int, *Loop) error { return retryAfter("3600") }); took != 0 || !errors.Is(err, protocol.ErrInterrupted) {
		t.Errorf("got %v after %s, want ErrInterrupted at once", err, took)
	}
}

func TestNoSecondTry(t *testing.T) {
	if _, calls, err := run(t, Policy{For: -1}, func(int, *Loop) error { return io.EOF }); calls != 1 || !errors.Is(err, protocol.ErrInterrupted) {
		t.Errorf("got %v after %d calls", err, calls)
	}
}

func TestContext(t *testing.T) {
	cause := errors.New("the user pressed ^C")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		began := time.Now()
		err := Policy{For: time.Hour}.Do(ctx, func(context.Context, *Loop) error { return io.EOF })
		if took := time.Since(began); took != time.Second {
			t.Errorf("took %s, want 1s", took)
		}
		for _, want := range []error{protocol.ErrInterrupted, cause, io.EOF} {
			if !errors.Is(err, want) {
				t.Errorf("%v does not wrap %v", err, want)
			}
		}
	})
}

func TestWaitsAreSpread(t *testing.T) {
	waits := func(random float64) (got []time.Duration) {
		p := Policy{For: time.Hour, Random: func() float64 { return random },
			Waiting: func(_ error, wait time.Duration) { got = append(got, wait) }}
		run(t, p, func(int, *Loop) error { return io.EOF })
		return got
	}
	low, high := waits(0), waits(0.999)
	for i := 1; i < 5; i++ {
		if low[i] >= high[i] {
			t.Errorf("wait %d: %s and %s do not differ by the random number", i, low[i], high[i])
		}
	}
	for _, w := range append(low, high...) {
		if w > maxWait*2 {
			t.Errorf("a wait of %s", w)
		}
	}
}
