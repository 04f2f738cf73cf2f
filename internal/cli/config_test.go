// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/rpush-go/rpush/internal/testgear/require"
	"github.com/rpush-go/rpush/pusher"
)

// configured is a rig whose pushes note their options.
func configured(t *testing.T, system, user string) (r *rig, got *pusher.Options) {
	t.Helper()
	got = &pusher.Options{}
	r = newRig(t, func(_ context.Context, o pusher.Options, ref name.Reference, _ remote.Taggable) (*pusher.Report, error) {
		*got = o
		return &pusher.Report{Reference: ref.Name()}, nil
	})
	for text, to := range map[string]*string{system: &r.systemConfig, user: &r.userConfig} {
		*to = filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(*to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r, got
}

// A flag beats its variable, a variable the files, the registry's entry defaults.
func TestConfigurationOfAPush(t *testing.T) {
	if os.Getuid() > 0 {
		require.Missing(t, "the system's file belongs to root")
	}
	system := "defaults: {retry-for: 1h, parallel: 7}\nregistries: {a.example: {retry-for: 2h, plain-http: true}}\n"
	user := "defaults: {stall-timeout: 5m}\n"
	for _, c := range []struct {
		args, env string
		retry     time.Duration
		http      bool
	}{
		{"a.example/app:1", "", 2 * time.Hour, true},
		{"b.example/app:1", "", time.Hour, false},
		{"a.example/app:1", "3h", 3 * time.Hour, true},
		{"--retry-for 4h a.example/app:1", "3h", 4 * time.Hour, true},
		{"--tls-verify=true --insecure=false b.example/app:1", "", time.Hour, false},
	} {
		r, got := configured(t, system, user)
		if c.env != "" {
			r.env["RPUSH_RETRY_FOR"] = c.env
		}
		args := strings.Fields(c.args)
		args = append(args[:len(args)-1], "oci:"+newLayout(t), args[len(args)-1])
		if code := r.main(args); code != exitOK {
			t.Errorf("%s: exit %d, %s", c.args, code, r.stderr.String())
		}
		if got.RetryFor != c.retry || got.Parallel != 7 || got.StallTimeout != 5*time.Minute || (got.Scheme == pusher.SchemeHTTP) != c.http {
			t.Errorf("%s: %+v", c.args, got)
		}
	}
}

func TestFixedSettings(t *testing.T) {
	if os.Getuid() > 0 {
		require.Missing(t, "the system's file belongs to root")
	}
	system := "defaults: {limit-rate: 20M, tls-verify: true}\nfixed: [limit-rate, insecure, plain-http, tls-verify]\n"
	for _, c := range []struct{ args, env, want string }{
		{"a.example/app:1", "", ""},
		{"--limit-rate 50M a.example/app:1", "", "--limit-rate cannot be used: limit-rate is fixed in "},
		{"--insecure a.example/app:1", "", "--insecure cannot be used"},
		{"--dest-tls-verify=false a.example/app:1", "", "--tls-verify cannot be used"},
		{"a.example/app:1", "RPUSH_PLAIN_HTTP", "RPUSH_PLAIN_HTTP cannot be used"},
	} {
		r, got := configured(t, system, "defaults: {limit-rate: 99M, insecure: true}\n")
		if c.env != "" {
			r.env[c.env] = "true"
		}
		args := strings.Fields(c.args)
		args = append(args[:len(args)-1], "oci:"+newLayout(t), args[len(args)-1])
		code := r.main(args)
		if want := map[bool]int{true: exitOK, false: exitUsage}[c.want == ""]; code != want || !strings.Contains(r.stderr.String(), c.want) {
			t.Errorf("%s %s: exit %d, %s", c.args, c.env, code, r.stderr.String())
		}
		if c.want == "" && got.Limit != 20<<20 {
			t.Errorf("the limit is %d", got.Limit)
		}
	}
	r, _ := configured(t, system, "")
	if code := r.main([]string{"--src-insecure", "docker://a.example/app:1", "b.example/app:1"}); code != exitUsage || !strings.Contains(r.stderr.String(), "--src-insecure cannot be used") {
		t.Errorf("--src-insecure: exit %d, %s", code, r.stderr.String())
	}
}

func TestBadConfiguration(t *testing.T) {
	if os.Getuid() > 0 {
		require.Missing(t, "the system's file belongs to root")
	}
	for text, want := range map[string]string{
		"defaults:\n  retry-fro: 1h\n":           `config.yaml:2: unknown key "retry-fro"`,
		"defaults:\n  creds: a:b\n":              `"creds" does not belong in a configuration file`,
		"defaults:\n\n  parallel: many\n":        `config.yaml:3: invalid value "many" of parallel`,
		"defaults: {ca-file: ca.pem}\n":          "needs an absolute path",
		"defaults: {retry-for: [1h]}\n":          "",
		"defaults: {retry-for: [1h, 2h]}\n":      "takes one value",
		"gateway: {listen: [a, b]}\n":            "takes one value",
		"fixed: [src-insecure]\n":                "no flag that can be fixed",
		"gateway: {allow: [a.example/team/*]}\n": "",
	} {
		r, _ := configured(t, text, "")
		code := r.main([]string{"oci:" + newLayout(t), "a.example/app:1"})
		if want == "" && code != exitOK || want != "" && (code != exitUsage || !strings.Contains(r.stderr.String(), want)) {
			t.Errorf("%q: exit %d, %s; want %q", text, code, r.stderr.String(), want)
		}
		r, _ = configured(t, text, "")
		if code := r.main([]string{"version"}); code != exitOK {
			t.Errorf("%q: rpush version ends with %d", text, code)
		}
	}
}

func TestConfigCommand(t *testing.T) {
	if os.Getuid() > 0 {
		require.Missing(t, "the system's file belongs to root")
	}
	r, _ := configured(t, "registries: {a.example: {ca-file: /ca.pem}}\nfixed: [insecure]\n", "defaults: {retry-for: 1h}\n")
	r.env["RPUSH_PARALLEL"] = "9"
	if code := r.main([]string{"config", "a.example/team/app"}); code != exitOK {
		t.Fatalf("exit %d, %s", code, r.stderr.String())
	}
	for key, want := range map[string][]string{
		"ca-file":   {"/ca.pem", r.systemConfig + ":1 (a.example)"},
		"retry-for": {"1h", r.userConfig + ":1"},
		"parallel":  {"9", "RPUSH_PARALLEL"},
		"insecure":  {"false", r.systemConfig + ":2, fixed"},
		"deadline":  {"0s", "default"},
	} {
		found := false
		for line := range strings.Lines(r.stdout.String()) {
			if f := strings.Fields(line); f[0] == key {
				found = true
				if rest := strings.Join(f[1:], " "); rest != strings.Join(want, " ") {
					t.Errorf("%s: got %q, want %q", key, rest, strings.Join(want, " "))
				}
			}
		}
		if !found {
			t.Errorf("no line about %s", key)
		}
	}
	if code := r.main([]string{"config", "--output", "json"}); code != exitOK {
		t.Fatalf("exit %d, %s", code, r.stderr.String())
	}
	_, doc, _ := strings.Cut(r.stdout.String(), "[\n")
	var all []setting
	if err := json.Unmarshal([]byte("["+doc), &all); err != nil || len(all) != len(configKeys) {
		t.Errorf("%v, %d settings", err, len(all))
	}
}
