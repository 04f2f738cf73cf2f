// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"net/url"
	"strings"
)

// sealMark is how the last element of a sealed location begins.
const sealMark = "rpush."

// sealer turns upload locations that are not below their repository into paths
// at the gateway and back. A sealed location is good for one repository, until
// the gateway ends. Nobody else can make one, so clients cannot have the gateway
// send requests anywhere that a registry has not named.
type sealer struct{ aead cipher.AEAD }

func newSealer() (*sealer, error) {
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &sealer{aead}, nil
}

// close returns the last element of a path at the gateway.
func (s *sealer) close(scope string, to *url.URL) string {
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce)
	return sealMark + base64.RawURLEncoding.EncodeToString(s.aead.Seal(nonce, nonce, []byte(to.String()), []byte(scope)))
}

// open returns the location in a path, with what the client added to the query.
func (s *sealer) open(scope, rest, query string) (to *url.URL, sealed, ok bool) {
	text, sealed := strings.CutPrefix(rest, "blobs/uploads/"+sealMark)
	if !sealed {
		return nil, false, false
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	n := s.aead.NonceSize()
	if err != nil || len(raw) < n {
		return nil, true, false
	}
	plain, err := s.aead.Open(nil, raw[:n], raw[n:], []byte(scope))
	if err != nil {
		return nil, true, false
	}
	to, err = url.Parse(string(plain))
	if err != nil {
		return nil, true, false
	}
	if to.RawQuery != "" && query != "" {
		query = to.RawQuery + "&" + query
	} else if query == "" {
		query = to.RawQuery
	}
	to.RawQuery = query
	return to, true, true
}
