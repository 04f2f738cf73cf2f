// SPDX-License-Identifier: Apache-2.0

package resume_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/testgear/memnet"
	"github.com/rpush-go/rpush/internal/testgear/scripted"
	"github.com/rpush-go/rpush/resume"
)

// always acts on every request of a kind.
func always(k scripted.Kind, a scripted.Action) func(scripted.Request) scripted.Action {
	return func(r scripted.Request) scripted.Action {
		if r.Kind == k {
			return a
		}
		return scripted.Action{}
	}
}

var kinds = []error{resume.ErrInterrupted, resume.ErrDenied, resume.ErrEndpoint, resume.ErrSource, resume.ErrRefused}

// Whatever a registry answers for ever, there is an end, in few requests, and
// with an error of exactly one kind.
func TestThereIsAnEnd(t *testing.T) {
	for name, c := range map[string]struct {
		o    scripted.Options
		kind error
		size int
	}{
		"commit 200":              {scripted.Options{Intercept: always(scripted.Put, scripted.Action{Before: 200})}, resume.ErrInterrupted, 10_000},
		"commit 404":              {scripted.Options{Intercept: always(scripted.Put, scripted.Action{ForgetSession: true})}, resume.ErrInterrupted, 10_000},
		"commit 416":              {scripted.Options{Intercept: always(scripted.Put, scripted.Action{Before: 416})}, resume.ErrInterrupted, 10_000},
		"PATCH and session gone":  {scripted.Options{Intercept: always(scripted.Patch, scripted.Action{ForgetSession: true})}, resume.ErrInterrupted, 10_000},
		"PATCH reset and gone":    {scripted.Options{Intercept: always(scripted.Patch, scripted.Action{ForgetSession: true, BeforeReset: true})}, resume.ErrInterrupted, 10_000},
		"PATCH 416":               {scripted.Options{Intercept: always(scripted.Patch, scripted.Action{Before: 416})}, resume.ErrRefused, 10_000},
		"PATCH 202, short Range":  {scripted.Options{Intercept: always(scripted.Patch, scripted.Action{Before: 202, Header: http.Header{"Range": {"0-0"}}})}, resume.ErrRefused, 10_000},
		"Range beyond":            {scripted.Options{Range: scripted.Beyond}, resume.ErrInterrupted, 10_000},
		"chunks too large by law": {scripted.Options{MinChunk: 5 * mib, MaxBody: mib}, resume.ErrRefused, 8 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, c.o, resume.Options{RetryFor: time.Hour}, func(l *lab) {
				l.fails(blobOf(content(c.size)), c.kind)
				if n := len(l.reg.Requests()); n > 600 {
					t.Errorf("%d requests", n)
				}
			})
		})
	}
}

// A redirect of everything to another scheme or name of the registry says
// nothing about a blob; one to where a blob is stored says that it is there.
func TestRedirects(t *testing.T) {
	for _, status := range []int{301, 302, 307, 308} {
		f := func(r scripted.Request) scripted.Action {
			return scripted.Action{Before: status, Header: http.Header{"Location": {"https://reg.test" + r.Path}}}
		}
		inLab(t, scripted.Options{Intercept: f}, resume.Options{}, func(l *lab) {
			l.fails(blobOf(content(1000)), resume.ErrEndpoint)
		})
	}
	storage := on(scripted.HeadBlob, 1, scripted.Action{Before: 307, Header: http.Header{"Location": {"https://storage.test/bucket/key?sig=1"}}})
	inLab(t, scripted.Options{Intercept: storage}, resume.Options{}, func(l *lab) {
		res, err := l.client.Upload(l.t.Context(), blobOf(content(1000)))
		if err != nil || !res.Existed {
			t.Errorf("got %+v, %v", res, err)
		}
	})
}

// A redirect to a page of the registry's own is no blob.
func TestRedirectToLogin(t *testing.T) {
	login := on(scripted.HeadBlob, 1, scripted.Action{Before: 302, Header: http.Header{"Location": {"/login?next=x"}}})
	inLab(t, scripted.Options{Intercept: login}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(1000)); res.Existed {
			t.Errorf("got %+v", res)
		}
	})
}

// A session lost late, on a line that dies all the time: the second pass makes
// progress too.
func TestSecondPass(t *testing.T) {
	f := on(scripted.Put, 1, scripted.Action{ForgetSession: true})
	inLab(t, scripted.Options{Intercept: f}, resume.Options{}, func(l *lab) {
		l.net.Plan = func(int) memnet.Limits { return memnet.Limits{Up: 40_000, Down: -1} }
		if res := l.delivers(content(2 * mib)); res.Restarts != 1 {
			t.Errorf("result %+v", res)
		}
	})
}

// once makes the first reader that a blob opens another.
func once(b resume.Blob, f func(io.Reader) io.Reader) resume.Blob {
	open, n := b.Open, 0
	b.Open = func(ctx context.Context, offset int64) (io.ReadCloser, error) {
		r, err := open(ctx, offset)
		if n++; n > 1 || err != nil {
			return r, err
		}
		return io.NopCloser(f(r)), nil
	}
	return b
}

// A source that is itself read over a network may break too.
func TestSourceBreaks(t *testing.T) {
	inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
		data := content(mib)
		b := once(blobOf(data), func(r io.Reader) io.Reader {
			return io.MultiReader(io.LimitReader(r, 1000), failing{syscall.ECONNRESET})
		})
		if _, err := l.client.Upload(l.t.Context(), b); err != nil {
			t.Error(err)
		}
		l.has(data)
	})
}

// A context ends an upload whatever the source does.
func TestCancelWhileTheSourceHangs(t *testing.T) {
	cancelled := func(l *lab, b resume.Blob) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		began := time.Now()
		_, err := l.client.Upload(ctx, b)
		if took := time.Since(began); !errors.Is(err, resume.ErrInterrupted) || took > 32*time.Second {
			l.t.Errorf("got %v after %s", err, took)
		}
	}
	inLab(t, scripted.Options{}, resume.Options{}, func(l *lab) {
		until := make(chan struct{})
		cancelled(l, once(blobOf(content(mib)), func(io.Reader) io.Reader { return hanging{until} }))
		close(until)
	})
	refuse := always(scripted.Put, scripted.Action{Before: 400})
	inLab(t, scripted.Options{Intercept: refuse}, resume.Options{}, func(l *lab) {
		b := blobOf(content(mib))
		open, opened := b.Open, 0
		b.Open = func(ctx context.Context, offset int64) (io.ReadCloser, error) {
			r, err := open(ctx, offset)
			if opened++; opened > 1 { // to be hashed
				return io.NopCloser(slow{r}), err
			}
			return r, err
		}
		cancelled(l, b)
	})
}

type hanging struct{ until chan struct{} }

func (h hanging) Read([]byte) (int, error) { <-h.until; return 0, io.EOF }

type slow struct{ r io.Reader }

func (s slow) Read(p []byte) (int, error) {
	time.Sleep(100 * time.Millisecond)
	return s.r.Read(p[:min(len(p), 1000)])
}

// A request of Do whose authorization is renewed in vain.
func TestDoDenied(t *testing.T) {
	inLab(t, scripted.Options{Intercept: always(scripted.PutManifest, scripted.Action{Before: 401})}, resume.Options{Transport: &renewing{}}, func(l *lab) {
		if _, err := l.client.Exists(l.t.Context(), blobOf(nil).Digest, 0); err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequest(http.MethodPut, "manifests/v1", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, err := l.client.Do(l.t.Context(), "publish", req); !errors.Is(err, resume.ErrDenied) || time.Since(began) > time.Minute {
			t.Errorf("got %v after %s", err, time.Since(began))
		}
	})
}

// A commit that was carried out and answered with a refusal was carried out.
func TestRefusedAfterCommit(t *testing.T) {
	for _, status := range []int{400, 403, 404, 409} {
		inLab(t, scripted.Options{Intercept: on(scripted.Put, 1, scripted.Action{After: status})}, resume.Options{}, func(l *lab) {
			l.delivers(content(1000))
		})
	}
}

// HEAD on an upload URL is forbidden, GET is not.
func TestStatusHeadForbidden(t *testing.T) {
	f := func(r scripted.Request) scripted.Action {
		if r.Kind == scripted.Status && r.Method == http.MethodHead {
			return scripted.Action{Before: 403}
		}
		return brokenBody(5000)(r)
	}
	inLab(t, scripted.Options{Intercept: f}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(10_000)); res.Resumes != 1 {
			t.Errorf("result %+v", res)
		}
	})
}

// Bodies that are too large cost a session each where nobody says where it
// stands; that is no reason to give up.
func TestTooLargeForABlindRegistry(t *testing.T) {
	inLab(t, scripted.Options{MaxBody: 64 << 10, Status: scripted.NoStatus}, resume.Options{}, func(l *lab) {
		if res := l.delivers(content(48 << 20)); res.Restarts < 8 {
			t.Errorf("%+v", res)
		}
	})
}

// A registry redirects HEAD and GET of a blob to storage, with URLs that are
// signed for one method. A lost answer to a commit is settled in seconds, and a
// redirect within the registry's own origin counts once its target says so.
func TestLostCommitOnObjectStorage(t *testing.T) {
	for name, o := range map[string]scripted.Options{
		"S3":                 {Storage: scripted.OtherOrigin},
		"S3, signed for GET": {Storage: scripted.OtherOrigin, SignsForGet: true},
		"same origin":        {Storage: scripted.SameOrigin},
	} {
		t.Run(name, func(t *testing.T) {
			o.OtherHost = "other.test:80"
			o.Intercept = on(scripted.Put, 1, scripted.Action{AfterReset: true})
			inLab(t, o, resume.Options{Transport: &basic{}}, func(l *lab) {
				began := time.Now()
				l.delivers(content(100_000))
				if took := time.Since(began); took > 10*time.Second {
					t.Errorf("settled after %s", took)
				}
				if n := l.count(scripted.Put); n != 1 {
					t.Errorf("%d PUTs, want 1", n)
				}
				if res := l.delivers(content(100_000)); !res.Existed { // an ordinary check says yes as well
					t.Errorf("the second upload: %+v", res)
				}
			})
		})
	}
}

// A registry that checks what a blob contains refuses it at the commit: Nexus, with
// strict content type validation. Sending the blob again would not help.
func TestContentRefused(t *testing.T) {
	nexus := []byte(`{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"blob upload invalid","detail":"Invalid docker content v2/-/blobs/sha256:0"}]}`)
	policy := []byte(`{"errors":[{"code":"POLICY","message":"encrypted layers are not allowed"}]}`)
	data := content(100_000)
	for name, body := range map[string][]byte{"nexus": nexus, "another code": policy} {
		t.Run(name, func(t *testing.T) {
			refuse := func(r scripted.Request) scripted.Action {
				if r.Kind == scripted.Put {
					return scripted.Action{Before: 400, Body: body}
				}
				return scripted.Action{}
			}
			var wrong *resume.ContentError
			inLab(t, scripted.Options{Intercept: refuse}, resume.Options{}, func(l *lab) {
				err := l.fails(blobOf(data), resume.ErrRefused)
				if !errors.As(err, &wrong) || l.count(scripted.Patch) != 1 || !strings.Contains(err.Error(), "BLOB_UPLOAD_INVALID") && !strings.Contains(err.Error(), "encrypted") {
					t.Errorf("%d PATCHes, and %v", l.count(scripted.Patch), err)
				}
			})
			// After a break an offset may have been wrong.
			inLab(t, scripted.Options{Intercept: all(brokenBody(50_000), refuse)}, resume.Options{}, func(l *lab) {
				err := l.fails(blobOf(data), resume.ErrRefused)
				if !errors.As(err, &wrong) || l.count(scripted.Patch) != 3 {
					t.Errorf("%d PATCHes, and %v", l.count(scripted.Patch), err)
				}
			})
			// A bad source is named first.
			inLab(t, scripted.Options{Intercept: refuse}, resume.Options{}, func(l *lab) {
				b := blobOf(data)
				b.Digest = digest.FromString("other")
				l.fails(b, resume.ErrSource)
			})
		})
	}
}

// A registry that says it holds less than it has acknowledged has lost bytes, as
// distribution on S3 does after small parts. Its session is not used on: the
// digest would be refused in the end.
func TestOffsetBelowAcknowledged(t *testing.T) {
	breaks := on(scripted.Patch, 3, scripted.Action{BreakBody: true, BodyLimit: 1000})
	for name, o := range map[string]scripted.Options{
		"Range": {}, "no Range in answers": {Range: scripted.NoRange}, "one location": {OneLocation: true, Status: scripted.GetOnly},
	} {
		o.MaxBody, o.Intercept = 2*mib, all(breaks, on(scripted.Status, 1, scripted.Action{CutBack: mib}), on(scripted.Status, 2, scripted.Action{CutBack: mib}))
		if o.Range == scripted.NoRange {
			o.Intercept = all(breaks, func(r scripted.Request) scripted.Action {
				if r.Kind == scripted.Status && r.Session == 1 {
					return scripted.Action{Before: http.StatusNoContent, Header: http.Header{"Range": {"0-1048575"}}}
				}
				return scripted.Action{}
			})
		}
		inLab(t, o, resume.Options{Dialects: known(2 * mib)}, func(l *lab) {
			res := l.delivers(content(9 * mib))
			if res.Restarts != 1 {
				t.Errorf("%s: result %+v", name, res)
			}
			patches := 0
			for _, p := range l.patches() {
				if p.Session == 1 {
					patches++
				}
			}
			if patches != 3 {
				t.Errorf("%s: %d PATCHes to the session that lost bytes, want 3", name, patches)
			}
		})
	}
}

// known are dialects of a host whose limit on bodies is known.
func known(limit int64) resume.Dialects {
	ds := resume.MemoryDialects()
	ds.Save(host, resume.Dialect{MaxBody: limit})
	return ds
}
