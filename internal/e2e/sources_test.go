// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/rpush-go/rpush/internal/testgear/binary"
	"github.com/rpush-go/rpush/internal/testgear/ocilayout"
	"github.com/rpush-go/rpush/internal/testgear/proxy"
	"github.com/rpush-go/rpush/internal/testgear/realreg"
	"github.com/rpush-go/rpush/internal/testgear/recorded"
	"github.com/rpush-go/rpush/internal/testgear/require"
)

// run runs a tool of others.
func run(t *testing.T, env []string, tool string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool, args...)
	cmd.Env = append(binary.Environ(t), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s%s", filepath.Base(tool), args, err, out, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// skopeo runs skopeo without policies.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return run(t, nil, realreg.Tool(t, "skopeo"), append([]string{"--policy", policy, "--override-arch", "amd64"}, args...)...)
}

// crane runs crane.
func crane(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, nil, realreg.Tool(t, "crane"), args...)
}

// pushes runs rpush with an input, which must succeed, and gives its stdout.
func pushes(t *testing.T, stdin io.Reader, env []string, args ...string) string {
	t.Helper()
	out, errs, exit := pushed(t, stdin, env, args...)
	if exit != 0 {
		t.Fatalf("rpush %v: exit %d\n%s", args, exit, errs)
	}
	return out
}

func pushed(t *testing.T, stdin io.Reader, env []string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), string(rpush), args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = stdin, &out, &errs, append(binary.Environ(t), env...)
	_ = cmd.Run() // the exit code says it
	return strings.TrimSpace(out.String()), errs.String(), cmd.ProcessState.ExitCode()
}

// compressed writes file with gzip and with zstd.
func compressed(t *testing.T, file string) (gz, zst string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	gz, zst = file+".gz", file+".zst"
	for name, content := range map[string][]byte{gz: b.Bytes(), zst: enc.EncodeAll(raw, nil)} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return gz, zst
}

func reader(t *testing.T, file string) io.Reader {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r, w := io.Pipe() // a pipe, as in a shell
	go func() {
		_, err := io.Copy(w, f)
		w.CloseWithError(err)
	}()
	return r
}

// buildx makes a multi-platform export with attestations.
func buildx(t *testing.T, seed uint64, friends bool) ocilayout.Export {
	t.Helper()
	e, err := ocilayout.WriteBuildx(filepath.Join(t.TempDir(), "export"), seed, friends)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// archiveOf is a layout as a tar file.
func archiveOf(t *testing.T, dir string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	if err := ocilayout.Tar(dir, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// The same index arrives from every source that fixes its digest: two
// platforms and their attestations, byte by byte, as crane and skopeo see it.
func TestDigestFromEverySource(t *testing.T) {
	reg, other := realreg.Start(t, realreg.Options{}), realreg.Start(t, realreg.Options{})
	e := buildx(t, 1, false)
	file := archiveOf(t, e.Dir)
	gz, zst := compressed(t, file)
	pushes(t, nil, nil, "oci:"+e.Dir, other.Addr+"/from/app:1")
	for i, c := range []struct {
		source string
		stdin  io.Reader
	}{
		{"oci:" + e.Dir, nil}, {"oci:" + e.Dir + ":1", nil}, {e.Dir + "@" + e.Index.Digest, nil},
		{"oci-archive:" + file, nil}, {"oci-archive:" + file + ":1", nil}, {file + "#1", nil}, {gz, nil}, {"oci-archive:" + zst, nil},
		{"-", reader(t, file)}, {"-", reader(t, gz)}, {"-", reader(t, zst)}, {"-#1", reader(t, file)}, {"oci-archive:-", reader(t, file)},
		{"docker://" + other.Addr + "/from/app:1", nil}, {"docker://" + other.Addr + "/from/app@" + e.Index.Digest, nil},
	} {
		t.Run(strings.ReplaceAll(c.source, "/", "_"), func(t *testing.T) {
			ref := fmt.Sprintf("%s/app%d:1", reg.Addr, i)
			if out, want := pushes(t, c.stdin, nil, "--preserve-digests", c.source, ref), ref+"@"+e.Index.Digest; out != want {
				t.Errorf("stdout %q, want %q", out, want)
			}
			if got := crane(t, "digest", ref); got != e.Index.Digest {
				t.Errorf("crane says %s, want %s", got, e.Index.Digest)
			}
			back := filepath.Join(t.TempDir(), "back")
			skopeo(t, "copy", "-q", "--all", "--preserve-digests", "--src-tls-verify=false", "docker://"+ref, "oci:"+back+":1")
			if err := ocilayout.Compare(e.Dir, back); err != nil {
				t.Error(err)
			}
		})
	}
}

// imageOf reads what an independent client finds: the digest of the config, the
// image ID, and the diff IDs. crane validate compares all layers with both.
func imageOf(t *testing.T, ref string) (id string, diffIDs []string) {
	t.Helper()
	crane(t, "validate", "--remote", ref)
	var m struct {
		Config struct{ Digest string }
	}
	if err := json.Unmarshal([]byte(crane(t, "manifest", ref)), &m); err != nil {
		t.Fatal(err)
	}
	var cfg struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal([]byte(crane(t, "config", ref)), &cfg); err != nil {
		t.Fatal(err)
	}
	return m.Config.Digest, cfg.RootFS.DiffIDs
}

// What docker saves has no digests of its own. The image ID stays, and each
// way to give the same archive gives the same digest.
func TestDockerSave(t *testing.T) {
	docker := realreg.Tool(t, "docker")
	if err := exec.Command(docker, "info").Run(); err != nil {
		require.Missing(t, "no Docker engine: %v", err)
	}
	reg := realreg.Start(t, realreg.Options{})
	dir := t.TempDir()
	dockerfile := "FROM scratch\nCOPY a /a\nCOPY b /b\nCOPY a /again\n"
	for name, content := range map[string]string{"Dockerfile": dockerfile, "a": strings.Repeat("a", 300_000), "b": strings.Repeat("b\n", 200_000)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	one, two := fmt.Sprintf("rpush-test/one:%d", os.Getpid()), fmt.Sprintf("rpush-test/two:%d-2", os.Getpid())
	t.Cleanup(func() { exec.Command(docker, "rmi", "-f", one, two).Run() })
	run(t, []string{"DOCKER_BUILDKIT=0"}, docker, "build", "-q", "-t", one, dir)
	id := run(t, nil, docker, "inspect", "--format", "{{.Id}}", one)
	run(t, []string{"DOCKER_BUILDKIT=0"}, docker, "build", "-q", "-t", two, "--build-arg", "x=y", "--label", "two=2", dir)
	id2 := run(t, nil, docker, "inspect", "--format", "{{.Id}}", two)

	file, both := filepath.Join(t.TempDir(), "one.tar"), filepath.Join(t.TempDir(), "both.tar")
	run(t, nil, docker, "save", "-o", file, one)
	run(t, nil, docker, "save", "-o", both, one, two)
	gz, zst := compressed(t, file)
	digests := map[string]bool{}
	for i, c := range []struct {
		source string
		stdin  io.Reader
		id     string
	}{
		{"docker-archive:" + file, nil, id}, {file, nil, id}, {gz, nil, id}, {"docker-archive:" + zst, nil, id}, {"-", reader(t, file), id},
		{"-", reader(t, gz), id}, {"docker-archive:" + file + ":" + one, nil, id}, {both + "#" + one, nil, id}, {"-#" + one, reader(t, both), id},
		{"docker-archive:" + both + "#" + two, nil, id2},
	} {
		ref := fmt.Sprintf("%s/saved%d:1", reg.Addr, i)
		out := pushes(t, c.stdin, nil, c.source, ref)
		got, layers := imageOf(t, ref)
		if got != c.id || len(layers) != 3 {
			t.Errorf("%s: image ID %s with %d layers, want %s with 3", c.source, got, len(layers), c.id)
		}
		if c.id == id {
			digests[out[strings.IndexByte(out, '@'):]] = true
		}
	}
	if len(digests) != 1 {
		t.Errorf("one image has the digests %v", digests)
	}
	_, stderr, exit := pushed(t, nil, nil, both, reg.Addr+"/x:1")
	if exit != 1 || !strings.Contains(stderr, one) || !strings.Contains(stderr, two) {
		t.Errorf("exit %d, stderr %s; want a choice of images", exit, stderr)
	}
	_, stderr, exit = pushed(t, nil, nil, "--preserve-digests", file, reg.Addr+"/x:1")
	if exit != 1 || !strings.Contains(stderr, "preserved") {
		t.Errorf("--preserve-digests: exit %d, stderr %s", exit, stderr)
	}
	// All that has a tag, and the engine takes it back.
	out := pushes(t, nil, nil, "-a", both, reg.Addr+"/all")
	if tags := crane(t, "ls", reg.Addr+"/all"); len(strings.Split(out, "\n")) != 2 || len(strings.Fields(tags)) != 2 {
		t.Errorf("--all-tags printed %q and left the tags %q", out, tags)
	}
	run(t, nil, docker, "rmi", "-f", one)
	run(t, nil, docker, "pull", "-q", reg.Addr+"/saved0:1")
	t.Cleanup(func() { exec.Command(docker, "rmi", "-f", reg.Addr+"/saved0:1").Run() })
	if got := run(t, nil, docker, "inspect", "--format", "{{.Id}}", reg.Addr+"/saved0:1"); got != id {
		t.Errorf("docker pulled %s, want %s", got, id)
	}
}

// What buildah and skopeo write arrives as they would have pushed it.
func TestBuildahAndSkopeo(t *testing.T) {
	buildah := realreg.Tool(t, "buildah")
	reg := realreg.Start(t, realreg.Options{})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), bytes.Repeat([]byte("abc\n"), 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy.json")
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	store := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run")}
	bud := func(args ...string) string { return run(t, nil, buildah, slices.Concat(store, args)...) }
	container := bud("from", "scratch")
	bud("copy", container, filepath.Join(dir, "a"), "/a")
	bud("commit", "-q", "--signature-policy", policy, container, "app:1")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, to := range []string{"oci:" + at("oci") + ":1", "oci-archive:" + at("oci.tar") + ":1", "docker-archive:" + at("docker.tar") + ":app:1"} {
		bud("push", "-q", "--signature-policy", policy, "app:1", to)
	}
	skopeo(t, "copy", "-q", "oci:"+at("oci")+":1", "oci-archive:"+at("skopeo.tar")+":1")
	skopeo(t, "copy", "-q", "oci:"+at("oci")+":1", "docker-archive:"+at("skopeo-docker.tar")+":app:1")
	crane(t, "push", at("oci"), reg.Addr+"/crane:1")
	want, wantLayers := imageOf(t, reg.Addr+"/crane:1")
	crane(t, "pull", reg.Addr+"/crane:1", at("crane.tar"))
	for i, c := range []struct {
		source string
		fixed  bool
	}{
		{"oci:" + at("oci"), true}, {"oci-archive:" + at("oci.tar"), true}, {at("skopeo.tar"), true},
		{"docker-archive:" + at("docker.tar"), false}, {at("skopeo-docker.tar"), false}, {at("crane.tar"), false},
	} {
		ref := fmt.Sprintf("%s/app%d:1", reg.Addr, i)
		pushes(t, nil, nil, c.source, ref)
		id, layers := imageOf(t, ref)
		if !slices.Equal(layers, wantLayers) {
			t.Errorf("%s: layers %v, want %v", c.source, layers, wantLayers)
		}
		if c.fixed {
			// buildah compresses again for each place, so compare with the source.
			var index struct{ Manifests []struct{ Digest string } }
			raw := ""
			switch {
			case strings.HasPrefix(c.source, "oci:"):
				b, err := os.ReadFile(filepath.Join(at("oci"), "index.json"))
				if err != nil {
					t.Fatal(err)
				}
				raw = string(b)
			default:
				raw = run(t, nil, "tar", "-xOf", strings.TrimPrefix(c.source, "oci-archive:"), "index.json")
			}
			if err := json.Unmarshal([]byte(raw), &index); err != nil {
				t.Fatal(err)
			}
			if got := crane(t, "digest", ref); got != index.Manifests[0].Digest {
				t.Errorf("%s: digest %s, want %s", c.source, got, index.Manifests[0].Digest)
			}
			if id != want {
				t.Errorf("%s: image ID %s, want %s", c.source, id, want)
			}
		}
	}
}

// From registry to registry with resets on both sides: what was read is not
// read again, what arrived is not sent again, and nothing is held in memory.
func TestRegistryToRegistry(t *testing.T) {
	from, to := realreg.Start(t, realreg.Options{}), realreg.Start(t, realreg.Options{})
	img := binary.Layout(t, 50, 128*mib, 30*mib, 1, 0)
	pushes(t, nil, nil, "oci:"+img.Dir, from.Addr+"/app:1")
	in := binary.Through(t, from.Addr, proxy.Options{Plan: func(int) proxy.Fault { return proxy.Fault{Kind: proxy.ResetClient, AtDown: 20 * mib} }})
	out := binary.Through(t, to.Addr, proxy.Options{Plan: proxy.Every(33*mib, proxy.Fault{Kind: proxy.ResetClient})})
	r := rpush.Push(t, binary.Environ(t), "docker://"+in.Addr()+"/app:1", out.Addr()+"/app:1")
	read, sent := float64(in.Stats().Down)/float64(img.Total), float64(out.Stats().Up)/float64(img.Total)
	t.Logf("read %.3f x and sent %.3f x the image with %d and %d faults, peak %.1f MiB", read, sent, in.Stats().Faults, out.Stats().Faults, float64(r.Peak)/mib)
	if in.Stats().Faults < 5 || out.Stats().Faults < 3 {
		t.Errorf("%d and %d faults", in.Stats().Faults, out.Stats().Faults)
	}
	// A reset loses what is in flight, here up to 9 MiB of loopback.
	if lost := read*float64(img.Total) - float64(img.Total); lost > float64(in.Stats().Faults+out.Stats().Faults)*12*mib {
		t.Errorf("read %.3f x the image", read)
	}
	if sent > 1.05 {
		t.Errorf("sent %.3f x the image", sent)
	}
	if r.Peak > 64*mib {
		t.Errorf("peak memory %.1f MiB", float64(r.Peak)/mib)
	}
	binary.Same(t, img, to.Addr+"/app:1")
}

// Within one registry nothing is read and nothing sent: the blobs are mounted.
// So they are from a repository that is named, and from that of the base.
func TestMounts(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	e := buildx(t, 2, false)
	pushes(t, nil, nil, "oci:"+e.Dir, reg.Addr+"/from/app:1")
	for _, c := range []struct{ name, to, source, flag string }{
		{"the source's", "copy", "docker://" + reg.Addr + "/from/app:1", ""},
		{"one that is named", "named", "oci:" + e.Dir, "--mount-from=" + reg.Addr + "/from/app"},
		{"one of several", "several", "oci:" + e.Dir, "--mount-from=" + reg.Addr + "/no/such," + reg.Addr + "/from/app"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{c.source, reg.Addr + "/" + c.to + ":1"}
			if c.flag != "" {
				args = append([]string{c.flag}, args...)
			}
			pushes(t, nil, nil, args...)
			if got := crane(t, "digest", reg.Addr+"/"+c.to+":1"); got != e.Index.Digest {
				t.Errorf("digest %s, want %s", got, e.Index.Digest)
			}
			log, err := reg.AccessLog()
			if err != nil {
				t.Fatal(err)
			}
			mounted := 0
			for _, a := range log {
				if !strings.HasPrefix(a.Path, "/v2/"+c.to+"/") {
					continue
				}
				if a.Method == http.MethodPatch {
					t.Errorf("a blob was sent: %s %s", a.Method, a.Path)
				}
				if a.Method == http.MethodPost && a.Status == http.StatusCreated {
					mounted++
				}
			}
			if mounted != 10 {
				t.Errorf("%d blobs mounted, want 10", mounted)
			}
		})
	}
}

// Layers that are compressed here are mounted, too: where what they become was
// known before, and where it was not. A repository of the registry that does not
// have them costs nothing but the question.
func TestMountsOfPlainLayers(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	all := recorded.All(t)
	i := slices.IndexFunc(all, func(a recorded.Archive) bool { return a.Name == "docker-20.10-id" })
	if i < 0 {
		t.Fatal("nothing of 20.10 is recorded")
	}
	a := all[i]
	type report struct {
		Sent   int64
		Layers struct{ Compressed int }
		Blobs  []struct{ Digest, State, MountFrom string }
	}
	push := func(env []string, args ...string) report {
		t.Helper()
		out := pushes(t, bytes.NewReader(a.Tar), env, append(args, "--output=json")...)
		var all struct{ Pushes []report }
		if err := json.Unmarshal([]byte(out), &all); err != nil || len(all.Pushes) != 1 {
			t.Fatalf("%v in %s", err, out)
		}
		return all.Pushes[0]
	}
	push(nil, "-", reg.Addr+"/from/app:1")
	knows := binary.Environ(t)
	push(knows, "-", realreg.Start(t, realreg.Options{}).Addr+"/elsewhere:1")
	count := len(a.Images[0].DiffIDs)
	from := "--mount-from=" + reg.Addr + "/no/such," + reg.Addr + "/from/app"
	for _, c := range []struct {
		name       string
		env, flags []string
		state      string
		compressed int
	}{
		{"known", knows, nil, "mounted", 0},
		{"not known, dry run", nil, []string{"--dry-run"}, "pending", count},
		{"not known", nil, nil, "mounted", count},
		{"compression unset", nil, []string{"--compression="}, "mounted", count},
	} {
		to := reg.Addr + "/" + strings.NewReplacer(" ", "-", ",", "").Replace(c.name) + ":1"
		r := push(c.env, append(c.flags, from, "-", to)...)
		if len(r.Blobs) != count+1 || r.Layers.Compressed != c.compressed {
			t.Errorf("%s: %d blobs, %d compressed, want %d and %d", c.name, len(r.Blobs), r.Layers.Compressed, count+1, c.compressed)
		}
		for _, b := range r.Blobs {
			if b.State != c.state || b.MountFrom != "from/app" {
				t.Errorf("%s: %+v, want it %s from from/app", c.name, b, c.state)
			}
		}
		if r.Sent != 0 {
			t.Errorf("%s: %d bytes sent", c.name, r.Sent)
		}
	}
}

// What belongs to an image goes along when it is asked for, from a layout and
// from registry to registry; where the registry has no referrers API, its list
// is kept under the fallback tag.
func TestReferrersAndDigestTags(t *testing.T) {
	reg := realreg.Start(t, realreg.Options{})
	e := buildx(t, 3, true)
	fallback := strings.Replace(e.AMD64.Digest, ":", "-", 1)
	complete := func(repo string) {
		t.Helper()
		if got := crane(t, "digest", repo+":1"); got != e.Index.Digest {
			t.Errorf("%s: digest %s, want %s", repo, got, e.Index.Digest)
		}
		if got := crane(t, "digest", repo+"@"+e.Signature.Digest); got != e.Signature.Digest {
			t.Errorf("%s: the signature is %s", repo, got)
		}
		if got := crane(t, "digest", repo+":"+e.CosignTag); got != e.Cosign.Digest {
			t.Errorf("%s: %s is %s, want %s", repo, e.CosignTag, got, e.Cosign.Digest)
		}
		var list struct {
			Manifests []ocilayout.Entry
		}
		if err := json.Unmarshal([]byte(crane(t, "manifest", repo+":"+fallback)), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Manifests) != 1 || list.Manifests[0].Digest != e.Signature.Digest || list.Manifests[0].ArtifactType != e.Signature.ArtifactType {
			t.Errorf("%s: the fallback tag lists %+v", repo, list.Manifests)
		}
	}
	both := []string{"--referrers", "--digest-tags"}
	pushes(t, nil, nil, append(both, "oci:"+e.Dir+":1", reg.Addr+"/signed:1")...)
	complete(reg.Addr + "/signed")
	pushes(t, nil, nil, append(both, "oci:"+e.Dir+":1", reg.Addr+"/signed:1")...) // again
	complete(reg.Addr + "/signed")
	pushes(t, nil, nil, append(both, "docker://"+reg.Addr+"/signed:1", reg.Addr+"/copied:1")...)
	complete(reg.Addr + "/copied")
	pushes(t, reader(t, archiveOf(t, e.Dir)), nil, append(both, "-", reg.Addr+"/piped:1")...)
	complete(reg.Addr + "/piped")

	pushes(t, nil, nil, "oci:"+e.Dir+":1", reg.Addr+"/alone:1")
	if got := crane(t, "ls", reg.Addr+"/alone"); got != "1" {
		t.Errorf("without the flags there are the tags %q", got)
	}
}
