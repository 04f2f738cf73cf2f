// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/rpush-go/rpush/pusher"
)

// docs/push.schema.json names exactly the fields that there are, and says of each
// whether it is always there.
func TestSchemaOfTheDocument(t *testing.T) {
	b, err := os.ReadFile("../../docs/push.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		Required   []string
		Properties map[string]any
		Defs       map[string]object `json:"$defs"`
	}
	var schema object
	if err := json.Unmarshal(b, &schema); err != nil {
		t.Fatal(err)
	}
	for name, of := range map[string]any{
		"": document{}, "break": brokenRequest{}, "push": pushDocument{}, "error": failure{},
		"blob": pusher.BlobReport{}, "manifest": pusher.ManifestReport{},
	} {
		want := schema
		if name != "" {
			want = schema.Defs[name]
		}
		var all, required []string
		for i := range reflect.TypeOf(of).NumField() {
			tag := reflect.TypeOf(of).Field(i).Tag.Get("json")
			if tag == "" {
				continue
			}
			field, options, _ := strings.Cut(tag, ",")
			all = append(all, field)
			if !strings.Contains(options, "omitempty") {
				required = append(required, field)
			}
		}
		slices.Sort(all)
		slices.Sort(required)
		slices.Sort(want.Required)
		if got := slices.Sorted(maps.Keys(want.Properties)); !slices.Equal(got, all) {
			t.Errorf("%q: the schema has %v, the code %v", name, got, all)
		}
		if !slices.Equal(want.Required, required) {
			t.Errorf("%q: the schema requires %v, the code always prints %v", name, want.Required, required)
		}
	}
}
