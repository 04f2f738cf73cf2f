// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/pusher"
)

// A registry that lists tags without end does not fill the memory with what is
// kept of each.
func TestAllTagsIsBounded(t *testing.T) {
	var list strings.Builder
	for i := range maxAllTags + 1 {
		fmt.Fprintf(&list, `,"%d"`, i)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/tags/list") {
			fmt.Fprintf(w, `{"tags":[%s]}`, list.String()[1:])
		}
	}))
	defer srv.Close()
	p := must(pusher.New(pusher.Options{}))
	defer p.CloseIdleConnections()
	images := must(Open(t.Context(), "docker://"+strings.TrimPrefix(srv.URL, "http://")+"/team/app", Options{Registry: p}))
	defer images.Close()
	tags, err := images.Tags(t.Context())
	if err == nil || !strings.Contains(err.Error(), "65537 tags") {
		t.Errorf("got %d tags, %v", len(tags), err)
	}
}
