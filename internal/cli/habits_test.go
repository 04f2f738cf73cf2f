// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What users of other clients type first gets an answer that leads on.
func TestHabitsOfOtherClients(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dir := range []string{"layout", "plain"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"app.tar", "app", filepath.Join("layout", "oci-layout")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"copy a.example/app:1 b.example/app:1", `there is no command "copy": rpush docker://SOURCE REFERENCE`},
		{"cp -r a b c", "unknown shorthand flag"},
		{"push layout b.example/app:1", "write ./layout as SOURCE"},
		{"app.tar b.example/app:1", "write ./app.tar as SOURCE"},
		{"app.tar", "rpush ./app.tar REFERENCE pushes it"},
		{"push layout", "rpush ./layout REFERENCE pushes it"},
		{"a.example/app:1 b.example/app:1", "write docker://a.example/app:1"},
	} {
		r := newRig(t, nil)
		if code := r.main(strings.Fields(c.args)); code != exitUsage || !strings.Contains(r.stderr.String(), c.want) {
			t.Errorf("%s: exit %d, %s; want %q", c.args, code, r.stderr.String(), c.want)
		}
	}
	// These are names of images of the engine all the same.
	for _, image := range []string{"app", "plain", "layout:1"} {
		if err := localWithoutDot([]string{image}); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
}
