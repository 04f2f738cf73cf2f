package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestStart(t *testing.T) {
	yes := func(context.Context) bool { return true }
	no := func(context.Context) bool { return false }

	p, err := Start(t.Context(), exec.Command("sleep", "60"), yes)
	if err != nil {
		t.Skipf("no sleep here: %v", err)
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
