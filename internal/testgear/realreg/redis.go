package realreg

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
)

// StartRedis runs Redis until the end of the test, for Options.Redis. Without
// the binary the test is skipped, see Tool.
func StartRedis(t TB) (addr string) {
	t.Helper()
	bin, dir := Tool(t, "redis-server"), t.TempDir()
	var p *process.Process
	start := func() (err error) {
		if addr, err = process.FreePort(); err != nil {
			return err
		}
		p, err = runRedis(bin, dir, addr)
		return err
	}
	if err := process.OnFreePort(start, logFile(dir, redisLog)); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { p.End(os.Interrupt, 2*time.Second) })
	return addr
}

const redisLog = "redis.log"

func runRedis(bin, dir, addr string) (*process.Process, error) {
	out, err := os.Create(filepath.Join(dir, redisLog))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(bin, "--bind", host, "--port", port, "--dir", dir, "--save", "", "--appendonly", "no")
	cmd.Stdout, cmd.Stderr = out, out
	return process.Start(context.Background(), cmd, func(ctx context.Context) bool {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return false
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Second))
		c.Write([]byte("PING\r\n"))
		answer := make([]byte, 5)
		n, _ := c.Read(answer)
		return string(answer[:n]) == "+PONG"
	})
}
