// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Changes is what Edit changes.
type Changes struct {
	// MediaType is the type that the manifest gets; empty keeps it as it is.
	MediaType types.MediaType
	// Descriptor is called for the config, each layer and each manifest, in their
	// order. It may change the media type, the size, the digest and what is
	// attested to, and returns whether the descriptor stays. nil keeps all.
	Descriptor func(d *Descriptor) bool
	// DropAnnotations removes those of the manifest itself.
	DropAnnotations bool
}

// Edit returns a manifest or index with some changes, and raw itself if there are
// none. All else the document says stays, in its order. The document must pass
// Check.
func Edit(raw []byte, c Changes) ([]byte, error) {
	if err := Check(raw); err != nil {
		return nil, err
	}
	if !json.Valid(raw) {
		return nil, errors.New("it is not JSON")
	}
	doc, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	changed := false
	if c.MediaType != "" {
		changed, err = doc.set("mediaType", c.MediaType)
	}
	if c.DropAnnotations {
		changed = doc.remove("annotations") || changed
	}
	for i := range doc {
		if err == nil && c.Descriptor != nil && doc[i].holdsDescriptors() {
			var did bool
			did, err = editMember(&doc[i], c.Descriptor)
			changed = changed || did
		}
	}
	if err != nil || !changed {
		return raw, err
	}
	if err := CheckRewrite(raw); err != nil {
		return nil, err
	}
	if !bytes.ContainsRune(raw, '\n') {
		return json.Marshal(doc)
	}
	return json.MarshalIndent(doc, "", "   ") // as docker writes manifests
}

func (m member) holdsDescriptors() bool {
	return strings.EqualFold(m.key, "config") || strings.EqualFold(m.key, "layers") || strings.EqualFold(m.key, "manifests")
}

// editMember edits a descriptor or a list of them.
func editMember(m *member, change func(*Descriptor) bool) (changed bool, err error) {
	var list []json.RawMessage
	isList := json.Unmarshal(m.value, &list) == nil
	if !isList {
		list = []json.RawMessage{m.value}
	}
	left := []json.RawMessage{}
	for _, one := range list {
		now, stays, err := editDescriptor(one, change)
		if err != nil {
			return false, fmt.Errorf("%s: %w", m.key, err)
		}
		changed = changed || !stays || !bytes.Equal(now, one)
		if stays {
			left = append(left, now)
		}
	}
	switch {
	case !changed:
	case isList:
		m.value, err = json.Marshal(left)
	case len(left) == 0:
		m.value = json.RawMessage("null")
	default:
		m.value = left[0]
	}
	return changed, err
}

func editDescriptor(raw json.RawMessage, change func(*Descriptor) bool) (now json.RawMessage, stays bool, err error) {
	var was Descriptor
	if err := json.Unmarshal(raw, &was); err != nil {
		return nil, false, err
	}
	d := was
	if !change(&d) {
		return nil, false, nil
	}
	if d == was {
		return raw, true, nil
	}
	o, err := parseObject(raw)
	if err != nil {
		return nil, false, err
	}
	_, err1 := o.set("mediaType", d.MediaType)
	_, err2 := o.set("size", d.Size)
	_, err3 := o.set("digest", d.Digest)
	err = errors.Join(err1, err2, err3)
	if i := o.index("annotations"); err == nil && i >= 0 && d.Annotations != was.Annotations {
		var a object
		if a, err = parseObject(o[i].value); err == nil {
			if _, err = a.set(attestsTo, d.Annotations.AttestsTo); err == nil {
				o[i].value, err = json.Marshal(a)
			}
		}
	}
	if err != nil {
		return nil, false, err
	}
	now, err = json.Marshal(o)
	return now, true, err
}

// KeepManifests returns an index with those of its manifests only that have one
// of the digests.
func KeepManifests(raw []byte, keep map[v1.Hash]bool) ([]byte, error) {
	return Edit(raw, Changes{Descriptor: func(d *Descriptor) bool { return keep[d.Digest] }})
}

// object is a JSON object that keeps its order.
type object []member

type member struct {
	key   string
	value json.RawMessage
}

func parseObject(raw []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	if t != json.Delim('{') {
		return nil, fmt.Errorf("it is not a JSON object but begins with %v", t)
	}
	var o object
	at := map[string]int{}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, _ := t.(string) // as every key of an object
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		if i, ok := at[key]; ok { // decoders take the last
			o[i].value = value
			continue
		}
		at[key] = len(o)
		o = append(o, member{key, value})
	}
	_, err = dec.Token()
	return o, err
}

// index finds a member as decoders do, whatever the case of its key.
func (o object) index(key string) int {
	for i := range o {
		if strings.EqualFold(o[i].key, key) {
			return i
		}
	}
	return -1
}

// set sets a member, and reports whether that changed it.
func (o *object) set(key string, to any) (changed bool, err error) {
	value, err := json.Marshal(to)
	if err != nil {
		return false, err
	}
	i := o.index(key)
	if i < 0 {
		*o = append(*o, member{key, value})
		return true, nil
	}
	if bytes.Equal((*o)[i].value, value) {
		return false, nil
	}
	(*o)[i].value = value
	return true, nil
}

func (o *object) remove(key string) bool {
	i := o.index(key)
	if i >= 0 {
		*o = append((*o)[:i], (*o)[i+1:]...)
	}
	return i >= 0
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}
