// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/protocol"
	"github.com/rpush-go/rpush/pusher"
	"github.com/rpush-go/rpush/resume"
)

// All that rpush says to a human is here; what flags mean is in flags.go.
// Lines are lower case and have no full stop. First what broke, then what is
// kept, then what to do, which is a hint.

const (
	pushShort     = "push an image"
	probeShort    = "find out whether a registry can continue a broken upload"
	sessionsShort = "list the interrupted uploads that the next push continues"
	forgetShort   = "drop what is kept of an upload, and cancel it at the registry"
	pruneShort    = "drop what has expired"
	versionShort  = "print the version"

	usageHint        = "hint: rpush --help says more"
	noReference      = "REFERENCE is missing: rpush [SOURCE] REFERENCE"
	tooManyArguments = "unexpected argument %q: rpush [SOURCE] REFERENCE"
	noRepository     = "REPOSITORY is missing: rpush probe REPOSITORY"
	badRepository    = "%q is no repository; one is [HOST[:PORT]/]NAME, in lower case and without a tag"
	tagAndDigest     = "%q has a tag and a digest; use only one of them"
	hostAlone        = "%q names a host and no repository: HOST:PORT/NAME[:TAG]"
	onlySource       = "REFERENCE is missing: %q is a SOURCE; add where to push it"
	badReference     = "%q is no reference; one is [HOST[:PORT]/]NAME[:TAG|@DIGEST], with NAME in lower case"
	noSessionsVerb   = "%q is none of list, forget, prune"
	noArgument       = "unexpected argument %q"
	badRegistry      = "%s: %q is no registry"
	severalAsked     = "%s applies to one registry, but uploads to %d are kept: add --registry REGISTRY"
	nothingToForget  = "nothing named to forget: rpush sessions forget DIGEST|REFERENCE, or --all"
	allAndOne        = "--all forgets everything: leave out --all, or the DIGEST or REFERENCE"
	tooManyForgotten = "unexpected argument %q: rpush sessions forget DIGEST|REFERENCE"
	ambiguousDigest  = "%q matches several digests: give more of the digest"
	notKept          = "nothing is kept of %q: rpush sessions lists what is"
	nothingKept      = "no interrupted uploads are kept"
	bothOrNone       = "%s and %s go together"
	badCreds         = "%s is not USER:PASSWORD"
	badPlatform      = "%q is no platform; one is OS/ARCH[/VARIANT], or all"
	badTag           = "%q is neither a tag nor a reference"
	notForSource     = "%s applies to the registry of a SOURCE docker://REF, and SOURCE is not one"
	notForEngine     = "%s has no effect on an image of the Docker engine"
	notForSaved      = "%s has no effect: docker save stores no referrers or signatures"
	onePlatform      = "%s picks one platform of an image of the Docker engine; all of them are pushed without it"
	onlyForEngine    = "%s applies to images of the Docker engine, and SOURCE is not one"
	onlyForPlain     = "%s applies to layers that are not compressed, and those of SOURCE are pushed as they are"
	nothingToSpool   = "%s has no effect: nothing of SOURCE has to be copied"
	noDigestToKeep   = "%w: the Docker engine keeps no manifest of %s whose digest could be preserved"
	keptCompressed   = "%w: %s has no effect on %s: containerd already stores its blobs in their final form; leave the flag out"
	otherRegistry    = "--mount-from %s is not on the same registry as %s, so blobs cannot be mounted from there"
	oneStdin         = "standard input can be read only once: for the password or for the image"
	contentTrust     = "content trust is requested, but rpush does not sign: push with --disable-content-trust (or without DOCKER_CONTENT_TRUST) and sign with cosign"
	tagWithAll       = "%q has a tag or a digest; with --all-tags the tags are those in SOURCE"
	resultNotWritten = "the result could not be written to stdout: %v"

	lateWords    = "some requests did not end in time; not waiting for them"
	openingPhase = "checking the source"

	againHint = "the same command again sends the rest"
	lostHint  = "rpush probe REPOSITORY shows what the registry keeps; rpush gateway serve --accept beside the registry keeps what arrived, or run a registry that does (distribution 3)"
	// tooLargeHint is for a proxy: registries take bodies of any size.
	tooLargeHint = "raise the limit of the proxy before the registry (nginx: client_max_body_size)"
	// fullHint is for a registry without room on its disk.
	fullHint    = "tell the registry's administrator; run the same command again once there is room"
	proxyHint   = "the proxy is at fault, not the registry: check HTTPS_PROXY, HTTP_PROXY and NO_PROXY"
	expiredHint = "a certificate is out of date, or this machine's clock is wrong"
)

func hint(s string) string { return "hint: " + s }

// smallerHint is for a registry that keeps nothing of a broken upload, on a line
// that breaks every so many bytes.
func smallerHint(between int64) string {
	return fmt.Sprintf("make layers smaller than %s", bytesWords(between))
}

func mendHint(place string) string { return "repair " + place + ", or remove the entry" }

func otherNameHint(host string) string {
	return fmt.Sprintf("the certificate is not valid for %s: use a name that it is valid for, or have it reissued", host)
}

func caHint(host, prefix string) string {
	return fmt.Sprintf("if %s has a certificate of your own CA, name that CA's file with --%sca-file", host, prefix)
}

func plainHint(host, prefix string) string {
	return fmt.Sprintf("%s does not use TLS; if that is intended, add --%splain-http", host, prefix)
}

func plainElsewhereHint(host string) string {
	return fmt.Sprintf("%s does not use TLS, and --plain-http applies to the registry of REFERENCE only: push to %s with a separate command", host, host)
}

func nameHint(host string) string {
	return fmt.Sprintf("there is no host %s: check the name in the reference", host)
}

func dnsHint(host string) string {
	return fmt.Sprintf("the name server did not answer for %s: check this machine's DNS", host)
}

func refusedHint(host string) string {
	return fmt.Sprintf("nothing listens at %s: check the port, and that the registry is up", host)
}

func noRegistryHint(host string) string {
	return fmt.Sprintf("the server at %s is not a registry: check the host and port in the reference", host)
}

func certificatesWords(registry string) string { return "certificates for " + registry }

func clobberHint(ref string) string {
	return fmt.Sprintf("leave out --no-clobber to overwrite %s, or choose another tag", ref)
}

func addressHint(host, prefix string) string {
	return fmt.Sprintf("no registry answers at %s over this protocol: check the host and port, and whether it needs --%splain-http", host, prefix)
}

func loginHint(host, prefix string) string {
	if prefix != "" {
		return fmt.Sprintf("docker login %s or --%screds give credentials that may pull; those for the registry pushed to are not sent there", host, prefix)
	}
	if host == name.DefaultRegistry {
		return "docker login stores credentials that may push"
	}
	return fmt.Sprintf("docker login %s stores credentials that may push", host)
}

// deniedHint says what to do about a denial. Another login helps only if it was
// the login that failed.
func deniedHint(status *protocol.StatusError, s scene) string {
	user := ""
	if s.user != nil {
		user = s.user()
	}
	switch {
	case status == nil || user == "":
		return loginHint(s.host, s.prefix)
	case loginFailed(status):
		return fmt.Sprintf("check the user and password; they came from %s", s.from())
	}
	return "ask the repository's owner for push permission; logging in again will not help"
}

func serverHint(host string) string {
	return fmt.Sprintf("this is a fault of the server: ask the administrator of %s to check its logs", host)
}

func credentialWords(from string) string { return "credentials: " + from }

func noHomeWords(err error) string {
	return fmt.Sprintf("warning: a push that is killed will start again, because open uploads cannot be kept: %v; --state-dir names a directory", err)
}

func noStateWords(err error) string { return fmt.Sprintf("the kept uploads cannot be read: %v", err) }

func forgottenWords(r resume.Record) string {
	return fmt.Sprintf("forgot %s of %s, %s of %s", shortDigest(r.Digest), r.Name(), bytesWords(r.Offset), bytesWords(r.Size))
}

func notCancelledWords(r resume.Record, err error) string {
	return fmt.Sprintf("%s was not cancelled at the registry, which will purge it: %v", shortDigest(r.Digest), err)
}

func forgetFailedWords(r resume.Record, err error) string {
	if errors.Is(err, resume.ErrHeld) {
		return fmt.Sprintf("%s is being uploaded to %s now; stop that push first", shortDigest(r.Digest), r.Name())
	}
	return fmt.Sprintf("%s of %s is still kept: %v", shortDigest(r.Digest), r.Name(), err)
}

// keptWords says what a failed push has achieved.
func keptWords(kind string, r *pusher.Report) []string {
	var lines []string
	if kind == "source" {
		lines = append(lines, "nothing was published")
	}
	var there, total int64
	var n, kept int
	for _, b := range r.Blobs {
		total += b.Size
		if b.Kept {
			kept++
		}
		if b.State != pusher.BlobPending {
			n++
			there += b.Size
		}
	}
	if n == 0 && len(r.Blobs) > 0 && kind == "interrupted" {
		lines = append(lines, "no blob is complete at the registry yet")
	}
	if n > 0 {
		lines = append(lines, fmt.Sprintf("%d of %d blobs (%s of %s) are at the registry and are not sent again",
			n, len(r.Blobs), bytesWords(there), bytesWords(total)))
	}
	if kept > 0 {
		lines = append(lines, fmt.Sprintf("%s under way %s kept, to continue where the registry stopped", plural(kept, "upload"), isAre(kept)))
	}
	return lines
}

func summaryWords(r *pusher.Report, t *tally) string {
	count := map[pusher.BlobState]int{}
	for _, b := range r.Blobs {
		count[b.State]++
	}
	parts := []string{
		fmt.Sprintf("%s: %s", r.Reference, bytesWords(r.Size)),
		fmt.Sprintf("%s existed, %d uploaded", plural(count[pusher.BlobExisted], "blob"), count[pusher.BlobUploaded]),
	}
	if n := count[pusher.BlobMounted]; n > 0 {
		parts = append(parts, fmt.Sprintf("%d mounted", n))
	}
	if r.Continued > 0 {
		parts = append(parts, bytesWords(r.Continued)+" of an earlier push continued")
	}
	parts = append(parts,
		bytesWords(r.Sent)+" sent", plural(max(r.Breaks, t.breaks), "break"), plural(r.Resumes, "resume"), plural(r.Restarts, "restart"),
		durationWords(time.Duration(r.Seconds*float64(time.Second))))
	return "pushed " + strings.Join(parts, ", ")
}

// summary is the line about a push that went well.
func (o *options) summary(r *pusher.Report, t *tally) string {
	if !o.image.dryRun {
		return summaryWords(r, t)
	}
	var missing int64
	n := 0
	for _, b := range r.Blobs {
		if b.State == pusher.BlobPending {
			n++
			missing += b.Size
		}
	}
	return fmt.Sprintf("dry run, nothing was sent: %s has %s, %d of %d blobs (%s) are missing",
		r.Reference, bytesWords(r.Size), n, len(r.Blobs), bytesWords(missing))
}

// dryRunWords is a line for all that the image consists of.
func dryRunWords(r *pusher.Report) string {
	var b strings.Builder
	for _, blob := range r.Blobs {
		what := "missing"
		switch {
		case blob.State != pusher.BlobPending:
			what = "exists"
		case blob.MountFrom != "":
			what = "missing, would be mounted from " + blob.MountFrom
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", blob.Digest, clean(blob.MediaType), bytesWords(blob.Size), what)
	}
	for _, m := range r.Manifests {
		what := "missing"
		if m.Existed {
			what = "exists"
		}
		fmt.Fprintf(&b, "%s %s %s %s\n", m.Digest, clean(m.MediaType), bytesWords(m.Size), what)
	}
	return b.String()
}

// sourceWords is about reading from a registry.
func sourceWords(e resume.Event) string { return "source: " + eventWords(e) }

func pushingPhase(src string, ref name.Reference) string {
	return fmt.Sprintf("pushing %s to %s", src, ref.Name())
}

// eventWords is the line about an event, empty where none is due.
func eventWords(e resume.Event) string {
	what := cmp.Or(shortDigest(e.Digest), e.Repository, "the registry")
	switch e.Kind {
	case resume.Existed:
		return fmt.Sprintf("%s is there already, %s", what, bytesWords(e.Size))
	case resume.Mounted:
		return fmt.Sprintf("%s mounted from another repository, %s", what, bytesWords(e.Size))
	case resume.Held:
		return fmt.Sprintf("%s is being uploaded by another push, waiting for it", what)
	case resume.Broken:
		at := ""
		if e.Offset > 0 {
			at = " at " + bytesWords(e.Offset)
		}
		return fmt.Sprintf("%s broken%s: %s (%s)", what, at, causeWords(e.Err), connWords(e))
	case resume.Waiting:
		s := fmt.Sprintf("%s next try in %s", what, durationWords(e.Wait))
		if e.Err != nil {
			s += ": " + causeWords(e.Err)
		}
		return s
	case resume.Resumed:
		return fmt.Sprintf("%s resumed at %s of %s", what, bytesWords(e.Offset), bytesWords(e.Size))
	case resume.Lost:
		return fmt.Sprintf("%s starts again at 0: the registry lost the upload", what)
	case resume.Committed:
		return fmt.Sprintf("%s committed, %s", what, bytesWords(e.Size))
	case resume.Warned:
		return "warning: " + protocol.Text(e.Err)
	default: // too many for lines of their own
		return ""
	}
}

// connWords is what an administrator looks for in the logs on the way.
func connWords(e resume.Event) string {
	var parts []string
	if c := e.Conn; c != nil {
		if c.Local != "" || c.Remote != "" {
			parts = append(parts, c.Local+" -> "+c.Remote)
		}
		parts = append(parts, durationWords(c.Age)+" old", bytesWords(c.Sent)+" sent")
		if c.RequestID != "" {
			parts = append(parts, "request id "+c.RequestID)
		}
	}
	return strings.Join(append(parts, e.Time.UTC().Format(time.RFC3339)), ", ")
}

// causeWords is the shortest that says how a connection broke.
func causeWords(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "no reason known"
	case isProxy(err):
		return proxyWords(err)
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed by the other side"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	return protocol.Text(err)
}

func stoppingWords(s os.Signal) string {
	return fmt.Sprintf("%s: stopping; once more to stop at once", s)
}

// bugWords is about a panic.
func bugWords(panicked any, stack []byte) []string {
	lines := []string{
		fmt.Sprintf("this is a bug in rpush: %v", panicked),
		hint("please report it, with everything below, at https://github.com/rpush-go/rpush/issues"),
		versionLine(),
	}
	return append(lines, strings.Split(strings.TrimSpace(string(stack)), "\n")...)
}

func probingWords(repo name.Repository) string {
	return fmt.Sprintf("breaking an upload of 4 MiB on purpose at %s; it is cancelled afterwards, nothing is published", repo.Name())
}

// verdictWords is the first line about a probe: what a user wants to know.
func verdictWords(c resume.Class) string {
	switch c {
	case resume.Exact:
		return "Supports byte-exact resume"
	case resume.Boundary:
		return "Supports resume at the end of the last complete request"
	case resume.Fragile, resume.Monolithic:
		return "Does not support resume"
	default:
		return "Could not find out whether it supports resume"
	}
}

// classWords says what a class means for a push.
func classWords(p *resume.Probe) string {
	switch p.Class {
	case resume.Exact:
		if p.Blind {
			return "exact: it keeps what it received of a broken upload, but says how much only when it refuses a request; a push continues there"
		}
		return "exact: it keeps what it received of a broken upload, and a push continues there"
	case resume.Boundary:
		return "boundary: it keeps whole requests only, as behind a proxy that buffers them; a push sends chunks, and repeats the last one"
	case resume.Fragile:
		if p.Blind {
			return "fragile: it does not say how much it holds, so a broken layer starts again; a push sends each chunk on a new connection"
		}
		return "fragile: it forgets the upload when a connection breaks, so the layer starts again; a push sends each chunk on a new connection"
	case resume.Monolithic:
		return "monolithic: it takes one PATCH per upload, so a broken layer starts again"
	default:
		return "not found out"
	}
}

// cures are what helps where a registry cannot continue.
func cures(c resume.Class) []string {
	if c == resume.Unproved || continues(c) {
		return nil
	}
	return []string{
		"stop the host or line that resets connections",
		"put a proxy that buffers requests in front of the registry (nginx: proxy_request_buffering on)",
		"run a registry that keeps what it received (distribution 3)",
	}
}

// probeWords is the result of a probe, for stdout.
func probeWords(repo name.Repository, p *resume.Probe) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n%s\n\n", verdictWords(p.Class), repo.Name(), classWords(p))
	for _, s := range p.Steps {
		got := "no answer: " + s.Error
		if s.Status != 0 {
			got = fmt.Sprint(s.Status)
			if s.Range != "" {
				got += ", Range: " + s.Range
			}
			if s.NewLocation {
				got += ", new Location"
			}
		}
		fmt.Fprintf(&b, "  %-42s %-6s %s\n", s.What, s.Method, clean(got))
	}
	for i, c := range cures(p.Class) {
		if i == 0 {
			b.WriteString("\nWhat helps:\n")
		}
		fmt.Fprintf(&b, "  - %s\n", c)
	}
	return b.String()
}

// shortDigest is enough of a digest to find it.
func shortDigest(d digest.Digest) string {
	const algorithmAndHex = len("sha256:") + 12
	return string(d[:min(len(d), algorithmAndHex)])
}

func isAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// bytesWords is a number of bytes: 120.0 MiB.
func bytesWords(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	f, unit := float64(n)/(1<<10), 0
	for f >= 1023.95 && unit < 4 { // what would be printed as 1024.0
		f, unit = f/(1<<10), unit+1
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[unit])
}

func durationWords(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
