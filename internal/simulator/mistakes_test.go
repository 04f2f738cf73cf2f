// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// mistake is one that somebody could make in the client. The old text must be
// in the file exactly once.
type mistake struct {
	name, file string
	edits      []edit
}

type edit struct{ old, new string }

func one(name, file, old, new string) mistake { return mistake{name, file, []edit{{old, new}}} }

var mistakes = []mistake{
	one("no status after a break", "resume/settle.go",
		"wait, before := firstSettle, int64(-1)",
		"if s.cut != nil {\n\t\treturn u.accept(s.start + s.cut.handed)\n\t}\n\twait, before := firstSettle, int64(-1)"),
	one("offset is the end, not a count", "internal/protocol/headers.go",
		"Bytes: int64(n) + 1", "Bytes: int64(n)"),
	one("Content-Range with a half-open end", "internal/protocol/headers.go",
		"FormatInt(end-1, 10)", "FormatInt(end, 10)"),
	one("0-0 is one byte", "internal/protocol/headers.go",
		"return Held{Ambiguous: true}, true", "return Held{Bytes: 1}, true"),
	one("the source read from one byte before", "resume/send.go",
		"u.blob.open(ctx, start)", "u.blob.open(ctx, max(start-1, 0))"),
	one("one reader for all attempts", "resume/send.go",
		"body := wire.NewBody(r, n)", "body := wire.NewBody(sameReader(u, r), n)").
		and("\t\"sync/atomic\"", "\t\"io\"\n\t\"sync\"\n\t\"sync/atomic\"").
		and("// sent takes note of a body", `var readers sync.Map

// sameReader is a deliberate mistake.
func sameReader(u *upload, r io.ReadCloser) io.ReadCloser {
	first, _ := readers.LoadOrStore(u, r)
	return first.(io.ReadCloser)
}

// sent takes note of a body`),
	one("Location of a status answer ignored", "resume/session.go",
		"if err := s.follow(ctx, a); err != nil {\n\t\treturn 0,", "if err := (&session{c: s.c, location: s.location}).follow(ctx, a); err != nil {\n\t\treturn 0,"),
	one("Location of a PATCH answer ignored", "resume/send.go",
		"if err := s.follow(ctx, a); err != nil {\n\t\treturn stepSettle, err", "if err := (&session{c: s.c, location: s.location}).follow(ctx, a); err != nil {\n\t\treturn stepSettle, err"),
	one("a commit without an answer taken for success", "resume/commit.go",
		"u.origin.onBreak(err)\n\t\treturn u.inDoubt(), err",
		"return u.finish(Committed), nil"),
	one("a commit with a body and without an answer taken for success", "resume/put.go",
		"return u.inDoubt(), err", "return u.finish(Committed), nil"),
	one("200 to a commit taken for success", "resume/commit.go",
		"case a.Status == http.StatusCreated:\n\t\tu.proved()", "case a.Status < 300:\n\t\tu.proved()"),
	one("a blob that is not there after a commit in doubt taken for there", "resume/commit.go",
		"if exists {\n\t\treturn u.finish(Committed)", "if exists || err == nil {\n\t\treturn u.finish(Committed)"),
	one("a failed existence check taken for no", "resume/client.go",
		"case f.Status != http.StatusOK:\n\t\treturn false, protocol.Unexpected(f.Answer, time.Now())", "case f.Status != http.StatusOK:\n\t\treturn false, nil"),
	one("200 to an existence check believed whatever its size", "resume/client.go",
		"size >= 0 && got != size", "size < 0 && got != size"),
	one("the session kept after a refused digest", "resume/commit.go",
		"sending the blob again\"))\n\treturn u.drop(refusal)", "sending the blob again\"))\n\tu.unsettle(true)\n\treturn stepSettle, protocol.Transient(refusal)"),
	one("a connection given up politely", "internal/wire/conn.go",
		"linger(c.Conn, reset)", "linger(c.Conn, politely)"),
	one("the first status answer believed while the old connection drains", "resume/settle.go",
		"s.offset.state != draining || offset == before", "before < 0 || offset == before"),
	one("5xx to a PATCH taken for success", "resume/send.go",
		"case a.Status >= 200 && a.Status < 300:\n\t\treturn u.acknowledge", "case a.Status >= 200 && a.Status < 300 || a.Status >= 500:\n\t\treturn u.acknowledge"),
	one("5xx taken for final", "internal/protocol/classify.go",
		"if status >= 500 {\n\t\treturn Break", "if status >= 500 {\n\t\treturn Final"),
	one("Retry-After ignored", "internal/protocol/headers.go",
		`h.Get("Retry-After")`, `h.Get("Retry-Later")`),
	one("manifests before blobs", "pusher/delivery.go",
		"if err := d.upload(ctx, g); err != nil {", "if err := d.publish(ctx, g, ids); err != nil {\n\t\treturn err\n\t}\n\tif err := d.upload(ctx, g); err != nil {"),
	one("the budget counted although there is progress", "internal/retry/retry.go",
		"l.since = time.Time{}", "_ = time.Time{}"),
	one("a lost session taken for final", "resume/lost.go",
		`return stepOpen, protocol.Transient(fmt.Errorf("upload session lost: %w", why))`, "return stepOpen, protocol.Kind(ErrRefused, protocol.Plain(why))"),
	one("credentials sent to other hosts", "resume/client.go",
		"rt = c.external", "rt = c.rt"),
	one("plain HTTP because the registry says so", "internal/protocol/headers.go",
		"u.Scheme, u.Host = registry.Scheme, registry.Host", "_ = u"),
	one("a spent body taken for a failure for good", "internal/wire/transport.go",
		"return nil, ErrSpent", "return nil, ErrPrivate"),
	one("upload locations in the log", "resume/client.go",
		`"request": what,`, `"request": what, "url": r.URL.String(),`),
	one("OCI-Chunk-Min-Length ignored", "resume/session.go",
		"protocol.ParseChunkLengths(a.Header)", "protocol.ParseChunkLengths(nil)"),
	one("OCI-Chunk-Min-Length not kept", "resume/keep.go",
		"c.pace.announced(s.lengths)", "c.pace.announced(protocol.ChunkLengths{})"),
	one("a record of a session that is gone taken for final", "resume/keep.go",
		"return u.drop(lost)", "return stepOpen, protocol.Kind(ErrRefused, protocol.Plain(lost))"),
	one("records kept after the commit and never dropped", "resume/keep.go",
		"if err := u.lease.remove(u.ctx); err != nil {", "if err := error(nil); err != nil {"),
	one("what an earlier process learnt never dropped", "resume/dialect.go",
		"h := p.hint\n", "h := Dialect{}\n"),
	one("413 taken for final", "resume/send.go",
		"case large && u.c.pace.tooLarge", "case large && a.Status == 0 && u.c.pace.tooLarge"),
	// Of the hosted registries.
	one("Content-Range on a whole blob", "resume/session.go", // GHCR
		"if b.ranged {", "if n > 0 {"),
	one("a rate limit taken for a denial", "internal/protocol/classify.go", // GHCR
		"if e.Limited || e.Cut", "if e.Cut"),
	one("a denial without its text taken for a denial", "internal/protocol/classify.go", // GHCR
		"if e.Limited || e.Cut && e.Status == http.StatusForbidden {", "if e.Limited {"),
	one("the target of a redirected check asked with GET", "resume/client.go", // S3, Harbor
		"req := request(method, at, nil, 0)", "req := request(map[bool]string{true: http.MethodGet, false: method}[f.redirected], at, nil, 0)"),
	one("a refused mount taken for final", "resume/open.go", // Harbor, Pulp
		"case a.Status != http.StatusAccepted && u.blob.MountFrom", "case a.Status == 0 && u.blob.MountFrom"),
	one("a refusal of a body in the commit taken for final", "resume/put.go", // Artifactory
		"case http.StatusNotFound, http.StatusMethodNotAllowed", "case http.StatusMethodNotAllowed"),
	one("403 for a tag that is not there taken for final", "pusher/pusher.go", // Artifactory
		"answer.Status == http.StatusForbidden && !answer.Token", "answer.Status == 0 && !answer.Token"),
	one("OCI-Chunk-Max-Length ignored", "resume/dialect.go", // R2
		"most := p.d.MaxChunk; most > 0", "most := p.d.MaxChunk; most < 0"),
	one("a redirect within the registry taken for no", "resume/client.go", // Artifact Registry, Pulp
		"case f.redirected:\n\t\t// To another path", "case f.redirected:\n\t\treturn false, nil\n\t\t// To another path"),
	one("404 to a status request taken for a lost session", "resume/settle.go", // ECR
		"case s.answered && s.stuck:", "case s.answered && s.stuck && false:"),
	one("a session that is damaged asked for ever", "resume/commit.go", // distribution on S3
		"err != nil && isDamaged(err) && u.commitFailed()", "err != nil && isDamaged(err) && false"),
	one("a session that holds one byte tried for ever", "resume/send.go", // Pulp
		"start == 0 && !untouched", "start < 0 && !untouched"),
}

func (m mistake) and(old, new string) mistake {
	m.edits = append(m.edits, edit{old, new})
	return m
}

// TestMistakesApply fails when a change to the client leaves the table out of date.
func TestMistakesApply(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) { m.changed(t, root) })
	}
}

// TestDeliberateFaults puts each mistake into a copy of its file, which the
// build takes instead (go test -overlay), and runs the seeds of TestSimulator
// until one of them fails.
func TestDeliberateFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the simulator once for each mistake")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := seeds(t, root, ""); err != nil {
		t.Fatalf("without any mistake the seeds must pass: %v\n%s", err, out)
	}
	slots := make(chan struct{}, max(runtime.GOMAXPROCS(0)/2, 2)) // each builds with several processors
	for _, m := range mistakes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			slots <- struct{}{}
			defer func() { <-slots }()
			began := time.Now()
			out, err := seeds(t, root, m.overlay(t, root))
			switch {
			case err == nil:
				t.Errorf("nobody noticed:\n%s", out)
			case !strings.Contains(out, "replay: RPUSH_SIM_SEED=") && !strings.Contains(out, "goroutine "):
				t.Errorf("the test failed, and not because of a seed: %v\n%s", err, out)
			default:
				t.Logf("found in %s: %s", time.Since(began).Round(100*time.Millisecond), found(out))
			}
		})
	}
}

// changed is the text of the file with the mistake in it.
func (m mistake) changed(t *testing.T, root string) (file, text string) {
	t.Helper()
	file = filepath.Join(root, filepath.FromSlash(m.file))
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = string(b)
	for _, e := range m.edits {
		if n := strings.Count(text, e.old); n != 1 {
			t.Fatalf("%q is in %s %d times, want once: the table is out of date", e.old, m.file, n)
		}
		text = strings.Replace(text, e.old, e.new, 1)
	}
	return file, text
}

// overlay writes what the go command wants to know.
func (m mistake) overlay(t *testing.T, root string) string {
	t.Helper()
	file, text := m.changed(t, root)
	dir := t.TempDir()
	changed := filepath.Join(dir, "changed.go")
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

// seeds runs TestSimulator in a process of its own.
func seeds(t *testing.T, root, overlay string) (string, error) {
	t.Helper()
	args := []string{"test", "-count=1", "-vet=off", "-ldflags=-s -w", "-timeout=10m", "-run=^TestSimulator$"}
	if overlay != "" {
		args = append(args, "-overlay="+overlay)
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, "./internal/simulator")...)
	cmd.Dir = root
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "RPUSH_SIM_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "RPUSH_SIM_FAILURES=1", fmt.Sprint("RPUSH_SIM_SEEDS=", 6*defaultSeeds))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// found is the seed and the invariant.
func found(out string) string {
	lines := strings.Split(out, "\n")
	for i, l := range lines {
		if strings.Contains(l, ": seed ") && i+1 < len(lines) {
			_, seed, _ := strings.Cut(l, ": seed ")
			seed, _, _ = strings.Cut(seed, ":")
			return fmt.Sprintf("seed %s: %.200s", seed, strings.TrimSpace(lines[i+1]))
		}
	}
	return "the process ended"
}
