// SPDX-License-Identifier: Apache-2.0

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
	s := &S3{}
	var p *process.Process
	start := func() (err error) {
		if s.Addr, err = process.FreePort(); err != nil {
			return err
		}
		p, err = runS3(bin, dir, s.Addr)
		return err
	}
	if err := process.OnFreePort(start, logFile(dir, s3Log)); err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() { p.End(os.Interrupt, time.Second) })
	return s
}

const s3Log = "s3.log"

// logFile reads a log in a directory.
func logFile(dir, name string) func() string {
	return func() string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return string(b)
	}
}

func runS3(bin, dir, addr string) (*process.Process, error) {
	root, sidecar := filepath.Join(dir, "root"), filepath.Join(dir, "sidecar")
	for _, d := range []string{filepath.Join(root, bucket), filepath.Join(sidecar, bucket)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	out, err := os.Create(filepath.Join(dir, s3Log))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	// Metadata lies beside the data, as not every file system has extended
	// attributes.
	cmd := exec.Command(bin, "--port", addr, "--access", accessKey, "--secret", secretKey, "--keep-alive", "--quiet",
		"posix", "--sidecar", sidecar, root)
	cmd.Stdout, cmd.Stderr = out, out
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	return process.Start(context.Background(), cmd, process.Answers(client, "http://"+addr+"/", func(res *http.Response) bool {
		return res.StatusCode == http.StatusForbidden // it asks for a signature
	}))
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
