package realreg

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rpush-go/rpush/internal/testgear/process"
)

// S3 is an S3 server for Options.S3.
type S3 struct {
	// Addr is host:port.
	Addr string
	// PartSize is the size in bytes of the parts that a registry uploads, 5 MiB
	// or more; 0 is the registry's own choice, 10 MiB.
	PartSize int64
	// NoRedirect has the registry read blobs from the server itself. Otherwise it
	// redirects clients there, as it does by default.
	NoRedirect bool
}

// The bucket and the credentials of a registry at its S3 server.
const (
	bucket    = "registry"
	accessKey = "realreg"
	secretKey = "realreg-secret"
)

// StartS3 runs an S3 server (versitygw on a directory) until the end of the
// test. Without the binary the test is skipped, see Tool.
func StartS3(t TB) *S3 {
	t.Helper()
	bin, dir := Tool(t, "versitygw"), t.TempDir()
	for try := 0; ; try++ {
		addr, err := process.FreePort()
		if err != nil {
			t.Fatalf("%v", err)
		}
		p, log, err := runS3(bin, dir, addr)
		if err == nil {
			t.Cleanup(func() { p.End(os.Interrupt, time.Second) })
			return &S3{Addr: addr}
		}
		if try == 5 || !process.PortTaken(log) {
			t.Fatalf("%v: %s", err, process.LastLine(log))
		}
	}
}

func runS3(bin, dir, addr string) (p *process.Process, log string, err error) {
	root, sidecar := filepath.Join(dir, "root"), filepath.Join(dir, "sidecar")
	for _, d := range []string{filepath.Join(root, bucket), filepath.Join(sidecar, bucket)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, "", err
		}
	}
	out, err := os.Create(filepath.Join(dir, "s3.log"))
	if err != nil {
		return nil, "", err
	}
	defer out.Close()
	// Metadata lies beside the data, as not every file system has extended
	// attributes.
	cmd := exec.Command(bin, "--port", addr, "--access", accessKey, "--secret", secretKey, "--keep-alive", "--quiet",
		"posix", "--sidecar", sidecar, root)
	cmd.Stdout, cmd.Stderr = out, out
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	p, err = process.Start(context.Background(), cmd, func(ctx context.Context) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
		if err != nil {
			return false
		}
		res, err := client.Do(req)
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == http.StatusForbidden // it asks for a signature
	})
	b, _ := os.ReadFile(out.Name())
	return p, string(b), err
}

// config is the storage section of a registry.
func (s *S3) config() string {
	var b strings.Builder
	fmt.Fprintf(&b, "  s3:\n    accesskey: %q\n    secretkey: %q\n    region: us-east-1\n    bucket: %q\n", accessKey, secretKey, bucket)
	fmt.Fprintf(&b, "    regionendpoint: %q\n    forcepathstyle: true\n    secure: false\n", "http://"+s.Addr)
	if s.PartSize > 0 {
		fmt.Fprintf(&b, "    chunksize: %d\n", s.PartSize)
	}
	fmt.Fprintf(&b, "  redirect:\n    disable: %t\n", s.NoRedirect)
	return b.String()
}
