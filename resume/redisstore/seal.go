// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
)

// KeySize is the size in bytes of Options.Key.
const KeySize = 32

// sealed is the first byte of an encrypted value. A value in clear is JSON and
// begins with a brace.
const sealed = 1

// sealer encrypts what is stored, with AES-256-GCM and a random nonce for each
// value. The nil sealer stores values in clear.
type sealer struct{ aead cipher.AEAD }

// newSealer returns the sealer of a key, which is empty or KeySize bytes long.
func newSealer(key []byte) (*sealer, error) {
	if len(key) == 0 {
		return nil, nil
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("the key has %d bytes, not %d", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &sealer{aead}, err
}

// seal encrypts a value. It can only be opened under the same name, so that
// nobody can pass the value of one key for that of another.
func (s *sealer) seal(name string, value []byte) []byte {
	if s == nil {
		return value
	}
	return s.aead.Seal([]byte{sealed}, nil, value, []byte(name))
}

// open returns what seal was given. With a key, a value in clear is an error:
// anyone who can write to Redis could have put it there.
func (s *sealer) open(name string, value []byte) ([]byte, error) {
	isSealed := len(value) > 0 && value[0] == sealed
	switch {
	case s == nil && isSealed:
		return nil, errors.New("it is encrypted, and no key was given")
	case s == nil:
		return value, nil
	case !isSealed:
		return nil, errors.New("it is not encrypted, although a key was given")
	}
	plain, err := s.aead.Open(nil, nil, value[1:], []byte(name))
	if err != nil {
		return nil, errors.New("it was encrypted with another key, or is damaged")
	}
	return plain, nil
}

// random returns 16 random bytes as hex digits.
func random() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}
