// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/rpush-go/rpush/resume"
)

// UnreachableError says that no engine answers at the address.
type UnreachableError struct {
	Address string
	Err     error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("the Docker engine at %s does not answer: %v", e.Address, e.Err)
}

// Unwrap returns resume.ErrSource and the cause.
func (e *UnreachableError) Unwrap() []error { return []error{resume.ErrSource, e.Err} }

// TooOldError says that the engine speaks no version of the API that this client does.
type TooOldError struct{ Address, API string }

func (e *TooOldError) Error() string {
	return fmt.Sprintf("the Docker engine at %s is too old: its API is %s, at least %s (Docker %s) is needed", e.Address, e.API, LeastAPI, LeastVersion)
}

// Unwrap returns resume.ErrSource.
func (e *TooOldError) Unwrap() error { return resume.ErrSource }

// NoImageError says that the engine has no such image.
type NoImageError struct{ Address, Name string }

func (e *NoImageError) Error() string {
	return fmt.Sprintf("the Docker engine at %s has no image %s", e.Address, e.Name)
}

// Unwrap returns resume.ErrSource.
func (e *NoImageError) Unwrap() error { return resume.ErrSource }

// BrokenError says that the engine went away while an image was read from it.
type BrokenError struct {
	Address, Name string
	Err           error
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("reading %s from the Docker engine at %s broke off: %v", e.Name, e.Address, e.Err)
}

// Unwrap returns resume.ErrSource and the cause.
func (e *BrokenError) Unwrap() []error { return []error{resume.ErrSource, e.Err} }

// NoPlatformError says that an image is not there for a platform.
type NoPlatformError struct {
	Address, Name string
	Platform      v1.Platform
	// Has are the platforms it is there for.
	Has []string
}

func (e *NoPlatformError) Error() string {
	return fmt.Sprintf("the Docker engine at %s has %s not for %s but for %s", e.Address, e.Name, e.Platform, strings.Join(e.Has, ", "))
}

// Unwrap returns resume.ErrSource.
func (e *NoPlatformError) Unwrap() error { return resume.ErrSource }

// Forbidden reports whether err is that the engine's socket may not be used by
// this user.
func Forbidden(err error) bool { return errors.Is(err, fs.ErrPermission) }

// WantsTLS reports whether err is that the engine was spoken to in plain HTTP at
// a port for TLS.
func WantsTLS(err error) bool { return cerrdefs.IsInvalidArgument(err) }

// WantsCertificate reports whether err is that the engine did not take the
// client's certificate, or that there was none.
func WantsCertificate(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" // an alert, in package tls
}

// bad returns a resume.ErrSource.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %w", resume.ErrSource, fmt.Errorf(format, args...))
}
