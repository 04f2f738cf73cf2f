// SPDX-License-Identifier: Apache-2.0

package saved

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/rpush-go/rpush/internal/manifest"
)

// ChainIDs are those of the layers with the given diffIDs (image-spec v1.1,
// "Layer ChainID").
func ChainIDs(diffIDs []digest.Digest) []digest.Digest {
	all := make([]digest.Digest, len(diffIDs))
	for i, d := range diffIDs {
		all[i] = d
		if i > 0 {
			all[i] = digest.FromString(string(all[i-1]) + " " + string(d))
		}
	}
	return all
}

// Position finds out which layer of an image the entry is, before it has been
// read: its index in chain, or -1 where that is not known.
//
// Docker before 25 names the directory of a layer by the v1 ID of its image,
// which is the digest of that image's JSON together with the layer's chain ID.
// So a name that fits is proof. (In what it saves, the JSON comes first.)
func (a *Archive) Position(e Entry, chain []digest.Digest) int {
	dir, file := path.Split(e.Name)
	id := path.Clean(dir)
	if file != "layer.tar" || digest.Digest("sha256:"+id).Validate() != nil {
		return -1
	}
	b, ok := a.Document(dir + "json")
	if !ok || len(chain) == 0 {
		return -1
	}
	// Many directories may lead to one large JSON.
	work := 2 * int64(len(b)) * int64(len(chain))
	if len(b) > maxV1 || a.tried+work > maxTried {
		return -1
	}
	a.tried += work
	var img map[string]json.RawMessage
	if manifest.Unmarshal(b, &img) != nil {
		return -1
	}
	delete(img, "id")
	if p, ok := img["parent"]; ok {
		var parent string
		if json.Unmarshal(p, &parent) != nil {
			return -1
		}
		img["parent"] = quoted("sha256:" + parent)
	}
	// The engine adds the system to all but the last layer after it made the ID.
	for range 2 {
		img["layer_id"] = quoted(placeholder)
		b, err := json.Marshal(img)
		if err != nil {
			return -1
		}
		before, after, _ := bytes.Cut(b, quoted(placeholder))
		for i, c := range chain {
			h := sha256.New()
			h.Write(before)
			h.Write(quoted(string(c)))
			h.Write(after)
			if hex.EncodeToString(h.Sum(nil)) == id {
				return i
			}
		}
		delete(img, "os")
	}
	return -1
}

const (
	maxV1    = 1 << 20   // bytes of one JSON
	maxTried = 512 << 20 // bytes that are hashed for one archive: a second or two

	// placeholder stands for a chain ID. What has it elsewhere too has none of the
	// IDs.
	placeholder = "rpush:chain"
)

func quoted(s string) json.RawMessage {
	b, _ := json.Marshal(s) // a string can be written
	return b
}
