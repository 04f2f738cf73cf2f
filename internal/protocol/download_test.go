// SPDX-License-Identifier: Apache-2.0

package protocol

import (
	"net/http"
	"testing"
)

func TestParsePart(t *testing.T) {
	for in, want := range map[string]Part{
		"bytes 0-9/10":  {0, 10},
		"bytes 5-9/10":  {5, 10},
		"bytes 5-9/*":   {5, -1},
		" bytes 0-0/1 ": {0, 1},
	} {
		if got, ok := ParsePart(http.Header{"Content-Range": {in}}); !ok || got != want {
			t.Errorf("%q: %+v, %v, want %+v", in, got, ok, want)
		}
	}
	for _, in := range []string{
		"", "bytes", "bytes 0-9", "0-9/10", "bytes */10", "bytes 9-0/10", "bytes 0-10/10", "bytes -1-9/10", "bytes +1-9/10",
		"bytes 0-9/99999999999999999999", "bytes 0-9223372036854775807/9223372036854775807", "bytes a-b/c",
	} {
		if got, ok := ParsePart(http.Header{"Content-Range": {in}}); ok {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func TestNextPage(t *testing.T) {
	for in, want := range map[string]string{
		`</v2/a/tags/list?n=2&last=b>; rel="next"`:     "n=2&last=b",
		`<https://evil.example/v2/x?last=c>; rel=next`: "last=c", // the query is all that is taken
		`</v2/a/tags/list?last=%2F..%2F>;rel="next"`:   "last=%2F..%2F",
		`</v2/a?x=1>; rel="prev"`:                      "",
		`</v2/a>; rel="next"`:                          "",
		`nonsense`:                                     "",
		`<` + "\x7f" + `?last=d>; rel="next"`:          "",
	} {
		got, ok := NextPage(http.Header{"Link": {in}})
		if got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v, want %q", in, got, ok, want)
		}
	}
}

func FuzzParsePart(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Fuzz(func(t *testing.T, in string) {
		p, ok := ParsePart(http.Header{"Content-Range": {in}})
		if ok && (p.Start < 0 || p.Total >= 0 && p.Start >= p.Total) {
			t.Errorf("%q: %+v", in, p)
		}
		NextPage(http.Header{"Link": {in}})
	})
}
