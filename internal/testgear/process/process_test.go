// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/require"
)

func TestStart(t *testing.T) {
	yes := func(context.Context) bool { return true }
	no := func(context.Context) bool { return false }

	p, err := Start(t.Context(), exec.Command("sleep", "60"), yes)
	if err != nil {
		require.Missing(t, "no sleep here: %v", err)
	}
	begin := time.Now()
	p.End(os.Interrupt, time.Minute)
	p.End(os.Interrupt, time.Minute)
	if d := time.Since(begin); d > 30*time.Second { // the time of sleep and of End is a minute
		t.Errorf("it took %v to end", d)
	}

	// One that does not listen is killed.
	p, err = Start(t.Context(), exec.Command("sh", "-c", "trap '' INT; exec sleep 60"), yes)
	if err != nil {
		t.Fatal(err)
	}
	p.End(os.Interrupt, 100*time.Millisecond)
	if p.cmd.ProcessState == nil {
		t.Error("it was not waited for")
	}

	if _, err := Start(t.Context(), exec.Command("false"), no); !errors.Is(err, ErrEnded) {
		t.Errorf("one that ends: got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, exec.Command("sleep", "60"), no); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one that is silent: got %v", err)
	}
}

func TestOnFreePortTriesAgainIfThePortIsTaken(t *testing.T) {
	failed := errors.New("it ended")
	for _, tt := range []struct {
		name     string
		failures int
		log      string
		calls    int
		want     string
	}{
		{"free", 0, "", 1, ""},
		{"taken twice", 2, "bind: Address already in use", 3, ""},
		{"taken for ever", 99, "first\nbind: address already in use\n", 5, "it ended: bind: address already in use"},
		{"another failure", 99, "first\nno such option\n", 1, "it ended: no such option"},
	} {
		calls := 0
		err := OnFreePort(func() error {
			if calls++; calls <= tt.failures {
				return failed
			}
			return nil
		}, func() string { return tt.log })
		got := ""
		if err != nil {
			got = err.Error()
		}
		if calls != tt.calls || got != tt.want {
			t.Errorf("%s: %d calls and %q, want %d and %q", tt.name, calls, got, tt.calls, tt.want)
		}
	}
}
