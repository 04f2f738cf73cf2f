// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package known

import (
	"errors"
	"os"
)

// secret fails for what is not a file of the right size. Who may read it, the
// user's profile says.
func secret(fi os.FileInfo) error {
	if !fi.Mode().IsRegular() || fi.Size() != keySize {
		return errors.New("is damaged: delete it")
	}
	return nil
}
