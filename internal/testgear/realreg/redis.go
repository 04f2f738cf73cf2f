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
	for try := 0; ; try++ {
		addr, err := process.FreePort()
		if err != nil {
			t.Fatalf("%v", err)
		}
		p, log, err := runRedis(bin, dir, addr)
		if err == nil {
			t.Cleanup(func() { p.End(os.Interrupt, 2*time.Second) })
			return addr
		}
		if try == 5 || !process.PortTaken(log) {
			t.Fatalf("%v: %s", err, process.LastLine(log))
		}
	}
}

func runRedis(bin, dir, addr string) (p *process.Process, log string, err error) {
	out, err := os.Create(filepath.Join(dir, "redis.log"))
	if err != nil {
		return nil, "", err
	}
	defer out.Close()
	host, port, _ := net.SplitHostPort(addr)
	cmd := exec.Command(bin, "--bind", host, "--port", port, "--dir", dir, "--save", "", "--appendonly", "no")
	cmd.Stdout, cmd.Stderr = out, out
	p, err = process.Start(context.Background(), cmd, func(ctx context.Context) bool {
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
	b, _ := os.ReadFile(out.Name())
	return p, string(b), err
}
