// SPDX-License-Identifier: Apache-2.0

//go:build linux

package enginetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/internal/testgear/docker"
)

// An engine that goes away in the middle of a save is not a damaged image, and
// what was read of it is not lost.
func (s *site) brokenOff(t *testing.T) {
	const layer = 3 * mib
	image := s.ref("broken/app:1")
	s.build(image, "scratch", 110, docker.Layer{Random: layer}, docker.Layer{Random: layer}, docker.Layer{Random: layer})
	id := s.id(image)
	for i, tt := range []struct {
		name string
		stop func() error
	}{
		{"the connection is cut", func() error { return errors.New("cut") }},
		{"the engine is killed", func() error { s.daemon.Kill(); return nil }},
	} {
		ref := s.ref(fmt.Sprintf("broken/app%d:1", i))
		l := s.as(t, "DOCKER_HOST="+s.tap.Host)
		s.tap.Break, s.tap.After = tt.stop, 2*layer+mib
		out, exit, stderr := l.text("docker-daemon:"+image, ref)
		s.tap.Break = nil
		for _, want := range []string{
			"reading " + image + " from the Docker engine at " + s.tap.Host + " broke off: ",
			"nothing was published",
			"hint: start the engine and run the same command again",
		} {
			if exit != 1 || out != "" || !strings.Contains(stderr, want) {
				t.Errorf("%s: exit %d, stdout %q\n%s\nwant %q", tt.name, exit, out, stderr, want)
			}
		}
		if i == 1 {
			s.daemon.Start(t)
		}
		r := l.push("--no-engine-update", "docker-daemon:"+image, ref)
		if had := r.Engine.Reused + int64(r.count("existed"))*layer; had < layer || r.Engine.Compressed > 2 {
			t.Errorf("%s: the next push made %d layers, took %d bytes from before: %+v", tt.name, r.Engine.Compressed, had, r)
		}
		s.exists(t, ref, id)
	}
}
